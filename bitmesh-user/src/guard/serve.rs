//! The guard's own process.

use std::{
    fs::File,
    io::{self, Read as _, stdin, stdout},
    os::{
        fd::AsFd as _,
        unix::{fs::OpenOptionsExt as _, net::UnixStream as StdStream},
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixStream, unix::OwnedWriteHalf},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::debug;

use super::{COOKIE, GuardArgs, SELLING, Said, bell::Bell, privileges};
use crate::{
    dataplane::{Change, UploadHook, Watch},
    footprint,
};

/// How often it is looked at the programs when nothing is told: links that were detached are told of by
/// nobody.
const PASS_INTERVAL: Duration = Duration::from_millis(100);
/// How often the interfaces are asked for when nothing is told of them: it takes as long as fifty looks
/// at the programs.
const LINKS_INTERVAL: Duration = Duration::from_secs(5);
/// Least time between two looks: a storm of changes does not become one of work.
const PASS_PAUSE: Duration = Duration::from_millis(10);
/// Least time between two looks at the rules, which take a process each.
const RULES_PAUSE: Duration = Duration::from_millis(200);
/// Lines that wait for the daemon to read them.
const OUTBOX_LINES: usize = 64;
/// Longest cookie that is handed on, in octets.
const COOKIE_MAX_OCTETS: u64 = 512;

/// Guards until the daemon is gone.
pub fn serve(args: &GuardArgs) -> Result<()> {
    let socket = stdin().as_fd().try_clone_to_owned().context("no standard input")?;
    let hold = stdout().as_fd().try_clone_to_owned().context("no standard output")?;
    let watch =
        Watch::open(&args.instance, args.lan.clone(), UploadHook::from(args.upload_hook), hold)?;
    privileges::keep_what_a_guard_needs()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(guard(watch, StdStream::from(socket), args))
}

async fn guard(mut watch: Watch, socket: StdStream, args: &GuardArgs) -> Result<()> {
    // Whoever stops the daemon stops the guard by that: signals to all of a terminal or a service
    // must not end it first.
    let _kept = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
    ];
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket).context("a guard is started by `bitmesh sell`")?;
    let (mut requests, answers) = socket.into_split();
    let answers = outbox(answers);
    let (mut links, mut rules) = (Bell::of_links()?, Bell::of_rules()?);
    let mut tick = interval(PASS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let changes = watch.pass(true, true);
    say(&answers, &Said::Ready)?;
    tell(&answers, changes)?;
    footprint::give_back_heap();
    footprint::give_back_program();
    let mut request = [0];
    let mut on_trial = args.on_trial;
    let (mut rules_changed, mut rules_next) = (false, Instant::now());
    let mut links_next = Instant::now() + LINKS_INTERVAL;
    loop {
        tokio::select! {
            read = requests.read(&mut request) => {
                let read = read.unwrap_or(0);
                match request {
                    _ if read == 0 && on_trial => return Ok(watch.let_go()?),
                    _ if read == 0 => return Ok(()),
                    SELLING => {
                        on_trial = false;
                        continue;
                    }
                    COOKIE => {}
                    _ => bail!("the daemon asked for something else than the guard gives"),
                }
                let cookie = args.node_cookie.as_deref();
                let said = read_cookie(cookie).unwrap_or_else(|e| Said::NoCookie(e.to_string()));
                say(&answers, &said)?;
                continue;
            }
            rung = links.rung() => {
                rung?;
                links_next = Instant::now();
            }
            rung = rules.rung() => {
                rung?;
                rules_changed = true;
            }
            _ = tick.tick() => {}
        }
        let started = Instant::now();
        let look = rules_changed && started >= rules_next;
        let asks = started >= links_next;
        if asks {
            links_next = started + LINKS_INTERVAL;
        }
        let changes = watch.pass(asks, look);
        if look {
            (rules_changed, rules_next) = (false, Instant::now() + RULES_PAUSE);
        }
        debug!(?changes, "a pass took {:?}", started.elapsed());
        tell(&answers, changes)?;
        sleep_until(started + PASS_PAUSE).await;
    }
}

/// Lines for the daemon, written by a task of their own: whether it reads them or not, the ports are
/// looked after.
fn outbox(mut answers: OwnedWriteHalf) -> mpsc::Sender<String> {
    let (lines, mut waiting) = mpsc::channel::<String>(OUTBOX_LINES);
    tokio::spawn(async move {
        while let Some(line) = waiting.recv().await {
            if answers.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
    });
    lines
}

fn tell(answers: &mpsc::Sender<String>, changes: Vec<Change>) -> Result<()> {
    changes.into_iter().try_for_each(|change| say(answers, &Said::Change(change)))
}

/// A daemon that doesn't read misses what there is no place for.
fn say(answers: &mpsc::Sender<String>, said: &Said) -> Result<()> {
    let mut line = serde_json::to_string(said)?;
    line.push('\n');
    if answers.try_send(line).is_err() {
        debug!("the daemon does not read, and misses something");
    }
    Ok(())
}

fn read_cookie(path: Option<&Path>) -> io::Result<Said> {
    let path = path.ok_or(io::ErrorKind::NotFound)?;
    let mut text = String::new();
    // The folder is another user's: no link to elsewhere, and nothing that keeps the guard waiting.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("the node's cookie is no regular file"));
    }
    file.take(COOKIE_MAX_OCTETS).read_to_string(&mut text)?;
    Ok(Said::Cookie(text.trim().to_owned()))
}
