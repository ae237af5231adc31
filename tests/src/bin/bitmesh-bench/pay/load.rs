//! Payers: connections that are kept, one for each station, with requests that were signed and
//! written out before. A client library would be measured as much as the server.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::secp256k1::{All, Secp256k1};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::Barrier,
    task::JoinSet,
};

use super::{
    fixture::Account,
    town::{address, device},
};

/// Time that an answer may take before a run fails.
const DEADLINE: Duration = Duration::from_secs(20);
/// Largest answer.
const ANSWER_OCTETS: usize = 8 << 10;
/// Pause between two connections, so that a listener's queue takes all.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// The requests of one connection, in order.
pub struct Script {
    octets: Vec<u8>,
    ends: Vec<usize>,
}

impl Script {
    /// Payments of `from` satoshi and one more each.
    pub fn new(secp: &Secp256k1<All>, account: &Account, from: u64, count: usize) -> Result<Self> {
        let (mut octets, mut ends) = (Vec::new(), Vec::with_capacity(count));
        for sat in (from..).take(count) {
            let body = serde_json::to_vec(&account.pay(secp, sat)?)?;
            let head = format!(
                "POST /v1/channels/{}/payments HTTP/1.1\r\nHost: edge\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                account.channel,
                body.len()
            );
            octets.extend_from_slice(head.as_bytes());
            octets.extend_from_slice(&body);
            ends.push(octets.len());
        }
        Ok(Self { octets, ends })
    }

    fn requests(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).filter_map(|(start, end)| self.octets.get(start..*end))
    }
}

/// How a run went.
pub struct Outcome {
    /// Payments acknowledged.
    pub payments: usize,
    /// From the first request to the last answer.
    pub took: Duration,
    /// Of each payment, from when it was to be sent, ascending.
    pub latencies: Vec<Duration>,
}

impl Outcome {
    /// A second.
    pub fn rate(&self) -> f64 {
        f64::from(u32::try_from(self.payments).unwrap_or(u32::MAX)) / self.took.as_secs_f64()
    }

    /// What so many of a thousand are not slower than.
    pub fn permille(&self, permille: usize) -> Duration {
        let at = (self.latencies.len() * permille / 1_000).min(self.latencies.len() - 1);
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

/// Sends every script on a connection of its own, from the station beside it: as fast as answers
/// come, or at `rate` a second over all, whatever answers do.
pub async fn run(
    edge: SocketAddr,
    scripts: Vec<(u32, Script)>,
    rate: Option<f64>,
) -> Result<Outcome> {
    let connections = scripts.len();
    let barrier = Arc::new(Barrier::new(connections));
    let mut payers = JoinSet::new();
    for (index, (station, script)) in scripts.into_iter().enumerate() {
        let stream = connect(edge, station).await.with_context(|| format!("station {station}"))?;
        let barrier = barrier.clone();
        payers.spawn(async move {
            barrier.wait().await;
            pay(stream, &script, rate.map(|rate| (index, connections, rate))).await
        });
        tokio::time::sleep(CONNECT_PAUSE).await;
    }
    let mut latencies = Vec::new();
    let (mut began, mut ended) = (None::<Instant>, None::<Instant>);
    while let Some(done) = payers.join_next().await {
        let (first, last, own) = done??;
        began = Some(began.map_or(first, |began| began.min(first)));
        ended = ended.max(Some(last));
        latencies.extend(own);
    }
    latencies.sort_unstable();
    let (began, ended) = began.zip(ended).context("nobody paid")?;
    ensure!(!latencies.is_empty(), "nobody paid");
    Ok(Outcome { payments: latencies.len(), took: ended - began, latencies })
}

async fn connect(edge: SocketAddr, station: u32) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind_device(Some(device(station).as_bytes()))?;
    socket.bind(SocketAddr::new(address(station).into(), 0))?;
    let stream = socket.connect(edge).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn pay(
    mut stream: TcpStream,
    script: &Script,
    pace: Option<(usize, usize, f64)>,
) -> Result<(Instant, Instant, Vec<Duration>)> {
    let began = Instant::now();
    let mut latencies = Vec::with_capacity(script.ends.len());
    let mut answer = vec![0; ANSWER_OCTETS];
    for (n, request) in script.requests().enumerate() {
        let meant = match pace {
            None => Instant::now(),
            Some((index, connections, rate)) => {
                let turn = u32::try_from(n * connections + index)?;
                let meant = began + Duration::from_secs_f64(f64::from(turn) / rate);
                tokio::time::sleep_until(meant.into()).await;
                meant
            }
        };
        stream.write_all(request).await?;
        tokio::time::timeout(DEADLINE, read(&mut stream, &mut answer))
            .await
            .context("no answer")??;
        latencies.push(meant.elapsed());
    }
    Ok((began, Instant::now(), latencies))
}

async fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<()> {
    let mut filled = 0;
    loop {
        let room = buffer.get_mut(filled..).filter(|room| !room.is_empty());
        let more = stream.read(room.context("an answer that is too long")?).await?;
        ensure!(more > 0, "the connection was closed");
        filled += more;
        let seen = buffer.get(..filled).unwrap_or_default();
        if let Some(length) = complete(seen)?
            && filled >= length
        {
            return Ok(());
        }
    }
}

/// Octets of an answer whose head is there; one that is no success is an error.
fn complete(seen: &[u8]) -> Result<Option<usize>> {
    let Some(head) = seen.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(seen)?;
    if !text.starts_with("HTTP/1.1 200 ") {
        bail!("a payment was not taken: {text}");
    }
    let length = text.get(..head).unwrap_or_default().lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Ok(Some(head + 4 + length.context("an answer without its length")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_with_its_body_and_a_refusal_is_an_error() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(complete(answer.get(..20).unwrap()).unwrap(), None);
        assert_eq!(complete(answer).unwrap(), Some(answer.len()));
        assert!(complete(b"HTTP/1.1 503 x\r\ncontent-length: 2\r\n\r\n{}").is_err());
    }
}
