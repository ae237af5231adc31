//! The daemon's end of the guard.

use std::{
    collections::VecDeque,
    io::Read as _,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::{mpsc, oneshot},
};
use tracing::error;

use super::{COOKIE, GuardArgs, SELLING, Said};
use crate::dataplane::Change;

/// The program that runs, also when its file was replaced meanwhile.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Longest first line of a guard, in octets.
const LINE_MAX_OCTETS: usize = 256;
/// Time that a guard has to look at everything once.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// Changes that wait for the daemon, and questions that wait for the guard.
const WAITING: usize = 64;

/// A guard that runs, before there is a runtime.
pub struct Started {
    socket: StdStream,
    pid: u32,
}

/// Starts a guard, which inherits this process's rights, and waits until it has looked at
/// everything once. It holds the instance's pins with `hold` until it ends.
pub fn start(args: &GuardArgs, hold: OwnedFd) -> Result<Started> {
    let (mut socket, theirs) = StdStream::pair()?;
    let mut command = Command::new(OWN_PROGRAM);
    command.args(["guard", "--instance", &args.instance]);
    for lan in &args.lan {
        command.args(["--lan", lan]);
    }
    let hook = args.upload_hook.to_possible_value().context("a hook without a name")?;
    command.args(["--upload-hook", hook.get_name()]);
    if let Some(cookie) = &args.node_cookie {
        command.arg("--node-cookie").arg(cookie);
    }
    if let Some(log) = &args.log {
        command.args(["--log", log]);
    }
    if let Some(format) = args.log_format.and_then(|format| format.to_possible_value()) {
        command.args(["--log-format", format.get_name()]);
    }
    if args.on_trial {
        command.arg("--on-trial");
    }
    command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::from(hold));
    let pid = command.spawn().context("starting the guard; is /proc mounted?")?.id();
    drop(command);

    socket.set_read_timeout(Some(READY_DEADLINE))?;
    let mut line = Vec::new();
    // Octet by octet: what comes after the line is for the runtime.
    while line.last() != Some(&b'\n') && line.len() < LINE_MAX_OCTETS {
        let mut octet = [0];
        socket.read_exact(&mut octet).context("the guard did not start; it says above why")?;
        line.extend(octet);
    }
    let Ok(Said::Ready) = serde_json::from_slice(&line) else {
        bail!("the guard is of another version; start again with one program");
    };
    Ok(Started { socket, pid })
}

/// A guard that runs.
pub struct Guard {
    /// Its process.
    pub pid: u32,
    changes: mpsc::Receiver<Change>,
    asks: mpsc::Sender<Ask>,
}

#[derive(Debug)]
enum Ask {
    Selling,
    Cookie(oneshot::Sender<Cookie>),
}

impl Guard {
    /// Goes on in a runtime.
    pub fn new(started: Started) -> Result<Self> {
        let Started { socket, pid } = started;
        socket.set_read_timeout(None)?;
        socket.set_nonblocking(true)?;
        let socket = UnixStream::from_std(socket)?;
        let (told, changes) = mpsc::channel(WAITING);
        let (asks, asked) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            if let Err(error) = talk(socket, told, asked).await {
                error!("the guard: {error:#}");
            }
        });
        Ok(Self { pid, changes, asks })
    }

    /// The next change; `None` when the guard is gone.
    pub async fn change(&mut self) -> Option<Change> {
        self.changes.recv().await
    }

    /// Who hands out the node's cookie.
    pub fn cookies(&self) -> Cookies {
        Cookies(self.asks.clone())
    }

    /// From now on everything stays when this process ends.
    pub async fn selling(&self) {
        // A guard that is gone is noticed by its changes.
        let _ = self.asks.send(Ask::Selling).await;
    }
}

type Cookie = Result<String, String>;

/// Hands out the node's cookie, read when it is asked for.
#[derive(Clone, Debug)]
pub struct Cookies(mpsc::Sender<Ask>);

impl Cookies {
    /// What the file holds now, or why that can't be told.
    pub async fn read(&self) -> Result<String, String> {
        let gone = "the guard is gone; restart `bitmesh sell`";
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Cookie(reply)).await.map_err(|_| gone)?;
        answer.await.map_err(|_| gone)?
    }
}

async fn talk(
    mut socket: UnixStream,
    told: mpsc::Sender<Change>,
    mut asked: mpsc::Receiver<Ask>,
) -> Result<()> {
    let (read, mut write) = socket.split();
    let mut lines = BufReader::new(read).lines();
    let mut waiting = VecDeque::new();
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                match serde_json::from_str(&line).context("an answer that is none")? {
                    Said::Ready => {}
                    Said::Change(change) => told.send(change).await?,
                    Said::Cookie(text) => reply(waiting.pop_front(), Ok(text)),
                    Said::NoCookie(reason) => reply(waiting.pop_front(), Err(reason)),
                }
            }
            Some(ask) = asked.recv() => match ask {
                Ask::Selling => write.write_all(&SELLING).await?,
                Ask::Cookie(reply) => {
                    waiting.push_back(reply);
                    write.write_all(&COOKIE).await?;
                }
            },
        }
    }
}

fn reply(to: Option<oneshot::Sender<Cookie>>, cookie: Cookie) {
    // Who asked may have given up.
    let _ = to.map(|to| to.send(cookie));
}
