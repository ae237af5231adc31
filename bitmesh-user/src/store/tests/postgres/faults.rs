//! Connections that break, and servers that die.

use std::path::PathBuf;

use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinHandle,
};

use super::*;

/// What happens to the connection on which certain octets come from the client.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The server never sees them.
    Before,
    /// The server gets them, and its answer is lost.
    Answer,
    /// The server gets them, and the connection ends at once.
    After,
}

type Armed = Arc<Mutex<Option<(&'static [u8], Cut)>>>;

/// A server's socket as an address, which can be cut.
struct Proxy {
    address: String,
    armed: Armed,
    connections: Arc<Mutex<Vec<JoinHandle<()>>>>,
    listener: JoinHandle<()>,
}

impl Proxy {
    async fn of(server: &Server<'_>) -> Self {
        let socket = server.socket().join(format!(".s.PGSQL.{}", server::PORT));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let armed = Armed::default();
        let connections = Arc::new(Mutex::new(Vec::new()));
        let (to_arm, all) = (Arc::clone(&armed), Arc::clone(&connections));
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let passing = tokio::spawn(pass(client, socket.clone(), Arc::clone(&to_arm)));
                all.lock().unwrap().push(passing);
            }
        });
        Self { address, armed, connections, listener }
    }

    fn arm(&self, octets: &'static [u8], cut: Cut) {
        *self.armed.lock().unwrap() = Some((octets, cut));
    }

    /// Whether what it was armed for has happened.
    fn is_spent(&self) -> bool {
        self.armed.lock().unwrap().is_none()
    }

    fn cut_all(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            connection.abort();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut_all();
    }
}

async fn pass(mut client: TcpStream, socket: PathBuf, armed: Armed) {
    let Ok(mut server) = UnixStream::connect(socket).await else { return };
    let (mut asked, mut told) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut mute = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(octets @ 1..) = read else { return };
                let hit = {
                    let mut armed = armed.lock().unwrap();
                    let hit = armed.filter(|(needle, _)| {
                        asked[..octets].windows(needle.len()).any(|window| window == *needle)
                    });
                    if hit.is_some() {
                        *armed = None;
                    }
                    hit.map(|(_, cut)| cut)
                };
                if matches!(hit, Some(Cut::Before)) {
                    return;
                }
                if server.write_all(&asked[..octets]).await.is_err() || matches!(hit, Some(Cut::After)) {
                    return;
                }
                mute |= hit.is_some();
            }
            read = server.read(&mut told) => {
                let Ok(octets @ 1..) = read else { return };
                if mute || client.write_all(&told[..octets]).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn at(proxies: &[&Proxy], database: &str) -> String {
    let hosts: Vec<_> = proxies.iter().map(|proxy| proxy.address.as_str()).collect();
    format!("postgres://{USER}:{PASSWORD}@{}/{database}", hosts.join(","))
}

async fn open_at(home: &Database, proxies: &[&Proxy]) -> Store {
    let fleet = Some(fleet(&at(proxies, &home.name), home.edge));
    let place = Place { directory: home.directory.path().to_owned(), fleet };
    let mut store = Store::open(&place, StoreRole::Provider, Network::Regtest).await.unwrap();
    store.load::<Event>().await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_happens_once() {
    let home = Database::fresh();
    let proxy = Proxy::of(&home.server).await;
    let mut store = open_at(&home, &[&proxy]).await;
    let mut all = vec![event(1, Event::Opened(0))];
    store.commit(&all, None).await.unwrap();
    let (mut sum, mut commits) = (100, 0);
    for rises in [false, true] {
        for cut in [Cut::Before, Cut::Answer, Cut::After] {
            // As one statement, known to the server and not; as several, cut at the last.
            for (rest, octets) in
                [(false, &b"\"paid\""[..]), (true, b"COMMIT"), (false, b"\"paid\"")]
            {
                commits += 1;
                if rises {
                    // In the place of the one before.
                    sum += 1;
                    all.pop();
                } else {
                    sum -= 1;
                }
                let mut batch = vec![event(1, Event::Paid(sum))];
                if rest {
                    batch.push(usage(1, commits));
                }
                proxy.arm(octets, cut);
                store.commit(&batch, None).await.unwrap();
                assert!(proxy.is_spent(), "{cut:?} was not met");
                all.push(event(1, Event::Paid(sum)));
            }
        }
    }
    drop(store);
    let (_, found) = loaded(&home).await;
    assert_eq!(found[..all.len()], all);
    assert_eq!(found[all.len()..], [usage(1, 17)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_still_under_way_when_its_connection_breaks_happens_once() {
    let home = Database::fresh();
    let proxy = Proxy::of(&home.server).await;
    let mut store = open_at(&home, &[&proxy]).await;
    store.commit(&[event(1, Event::Opened(0))], None).await.unwrap();
    // Less each time, so that each has a row of its own.
    store.commit(&[event(1, Event::Paid(3))], None).await.unwrap();
    let mut other = PgConnection::connect(&home.url()).await.unwrap();
    for (sum, cut) in [(2, Cut::Before), (1, Cut::After)] {
        other.execute("BEGIN; SELECT 1 FROM edges FOR UPDATE").await.unwrap();
        proxy.arm(b"\"paid\"", cut);
        let batch = [event(1, Event::Paid(sum))];
        let release = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            other.execute("ROLLBACK").await.unwrap();
        };
        let (done, ()) = tokio::join!(store.commit(&batch, None), release);
        done.unwrap();
    }
    drop(store);
    let (_, found) = loaded(&home).await;
    let paid = |sum| event(1, Event::Paid(sum));
    assert_eq!(found, [event(1, Event::Opened(0)), paid(3), paid(2), paid(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_primary_dies_and_the_standby_is_promoted() {
    let (mut primary, standby) = with_standby();
    let (first, second) = (Proxy::of(&primary).await, Proxy::of(&standby).await);
    let directory = tempfile::tempdir().unwrap();
    // A commit is tried for as long as a promotion may take on a busy machine.
    let hold = Duration::from_secs(30);
    let fleet = Some(Fleet { hold, ..fleet(&at(&[&first, &second], "fleet"), "one") });
    let place = Place { directory: directory.path().to_owned(), fleet };
    let open = || Store::open(&place, StoreRole::Provider, Network::Regtest);
    let mut store = open().await.unwrap();
    store.load::<Event>().await.unwrap();
    store.commit(&[event(1, Event::Opened(0))], None).await.unwrap();
    // Less each time, so that each has a row of its own.
    let paid = |number: u32| event(1, Event::Paid(1_000_000 - u64::from(number)));
    let acknowledged = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&acknowledged);
    let load = tokio::spawn(async move {
        let mut after = 0;
        for sum in 1.. {
            store.commit(&[paid(sum)], None).await.unwrap();
            let stop = count.fetch_add(1, Ordering::SeqCst) >= u32::MAX / 2;
            after += u32::from(stop);
            if after == 200 {
                return (store, sum);
            }
        }
        unreachable!()
    });
    while acknowledged.load(Ordering::SeqCst) < 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::task::block_in_place(|| {
        primary.kill();
        standby.promote().unwrap();
    });
    acknowledged.fetch_add(u32::MAX / 2, Ordering::SeqCst);
    let (mut store, sum) = load.await.unwrap();
    // The old primary comes back, takes writes, and is named first: it lacks what was acknowledged.
    tokio::task::block_in_place(|| primary.launch().unwrap());
    first.cut_all();
    second.cut_all();
    store.commit(&[paid(sum + 1)], None).await.unwrap();
    drop(store);
    let count = "SELECT COUNT(*) FROM journal";
    let count = tokio::task::block_in_place(|| standby.sql("fleet", count).unwrap());
    assert_eq!(count, (sum + 2).to_string());
    // A start, too, passes it over.
    let mut store = open().await.unwrap();
    let found = store.load::<Event>().await.unwrap();
    assert!(found.into_iter().skip(1).eq((1..=sum + 1).map(paid)));
}

/// A server whose commits wait for its standby.
fn with_standby() -> (Server<'static>, Server<'static>) {
    tokio::task::block_in_place(|| {
        let primary = Server::start(&prefix(), here(), "").unwrap();
        let socket = primary.socket().display().to_string();
        let standby = primary.standby(&prefix(), here(), &socket, "").unwrap();
        primary.create("fleet").unwrap();
        (primary, standby)
    })
}

/// Both take writes from now on.
fn part(primary: &Server<'_>, standby: &Server<'_>) {
    tokio::task::block_in_place(|| {
        primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = ''").unwrap();
        primary.sql("postgres", "SELECT pg_reload_conf()").unwrap();
        standby.promote().unwrap();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_may_lose_what_it_acknowledges_is_told_of_until_it_is_put_right() {
    let (primary, standby) = with_standby();
    let (first, second) = (Proxy::of(&primary).await, Proxy::of(&standby).await);
    let directory = tempfile::tempdir().unwrap();
    let fleet = Some(fleet(&at(&[&first, &second], "fleet"), "one"));
    let place = Place { directory: directory.path().to_owned(), fleet };
    let store = Store::open(&place, StoreRole::Provider, Network::Regtest).await.unwrap();
    assert!(store.kept().warnings.is_empty(), "{:?}", store.kept());
    for (setting, bad, good) in [
        ("fsync", "off", "on"),
        ("full_page_writes", "off", "on"),
        ("synchronous_standby_names", "''", "standby"),
    ] {
        for (value, is_told) in [(bad, true), (good, false)] {
            tokio::task::block_in_place(|| {
                let change = format!("ALTER SYSTEM SET {setting} = {value}");
                primary.sql("postgres", &change).unwrap();
                primary.sql("postgres", "SELECT pg_reload_conf()").unwrap();
            });
            let until = std::time::Instant::now() + Duration::from_secs(20);
            while store.kept().warnings.iter().any(|told| told.contains(setting)) != is_told {
                assert!(std::time::Instant::now() < until, "{setting} {value}: {:?}", store.kept());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_servers_that_take_writes_the_one_that_was_promoted_last_is_used_or_none() {
    let (primary, standby) = with_standby();
    let (first, second) = (Proxy::of(&primary).await, Proxy::of(&standby).await);
    let open = async |directory: &TempDir, edge: &str, proxies: &[&Proxy]| {
        let fleet = Some(fleet(&at(proxies, "fleet"), edge));
        let place = Place { directory: directory.path().to_owned(), fleet };
        let opened = Store::open(&place, StoreRole::Provider, Network::Regtest);
        let mut store = opened.await?;
        store.load::<Event>().await?;
        Ok::<_, StoreError>(store)
    };
    let both = [&first, &second];
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut follows = open(&one, "one", &both).await.unwrap();
    let mut stays = open(&two, "two", &both).await.unwrap();
    for (store, channel) in [(&mut follows, 1), (&mut stays, 2)] {
        assert!(store.kept().place.starts_with(&first.address), "{:?}", store.kept());
        assert!(store.kept().warnings.is_empty(), "{:?}", store.kept());
        store.commit(&[event(channel, Event::Opened(channel))], None).await.unwrap();
    }
    part(&primary, &standby);
    // Acknowledged where nobody else has it.
    stays.commit(&[event(2, Event::Paid(1))], None).await.unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while !follows.kept().place.starts_with(&second.address) {
        assert!(std::time::Instant::now() < until, "{:?}", follows.kept());
        follows.renew().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let warnings = follows.kept().warnings.join(" ");
    assert!(warnings.contains(&first.address) && warnings.contains("stop it"), "{warnings}");
    assert!(warnings.contains("synchronous_standby_names"), "{warnings}");
    follows.commit(&[event(1, Event::Paid(1))], None).await.unwrap();
    let error = loop {
        assert!(std::time::Instant::now() < until, "{:?}", stays.kept());
        match stays.renew().await {
            Err(error) => break error,
            Ok(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert!(matches!(error, StoreError::Behind { theirs: 2, ours: 3, .. }), "{error}");
    drop((follows, stays));
    // A start knows it, too, whatever it is told of the servers.
    let error = open(&one, "one", &[&first]).await.unwrap_err();
    assert!(
        matches!(&error, StoreError::OtherServer { why, .. } if why.contains("promoted")),
        "{error}"
    );
    let error = open(&two, "two", &both).await.unwrap_err();
    assert!(matches!(error, StoreError::Behind { .. }), "{error}");
    open(&one, "one", &both).await.unwrap().close().await.unwrap();
    // What is lost for good is given up on purpose, once that is written down.
    let place = |proxies: &[&Proxy]| {
        let fleet = Some(fleet(&at(proxies, "fleet"), "two"));
        Place { directory: two.path().to_owned(), fleet }
    };
    let nowhere: Fleet = fleet("postgres://me@127.0.0.1:1/fleet", "two");
    let nowhere = Place { fleet: Some(nowhere), ..place(&both) };
    let refused = accept_server(&nowhere, Network::Regtest).await;
    assert!(matches!(refused, Err(StoreError::Unreachable { .. })), "{refused:?}");
    let error = open(&two, "two", &both).await.unwrap_err();
    assert!(matches!(error, StoreError::Behind { .. }), "{error}");
    let place = place(&both);
    accept_server(&place, Network::Regtest).await.unwrap();
    let store = open(&two, "two", &both).await.unwrap();
    assert!(store.went_back().unwrap().contains("accepted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_of_another_cluster_is_not_used() {
    let home = Database::fresh();
    open(&home).await.unwrap().close().await.unwrap();
    let other = tokio::task::block_in_place(|| Server::start(&prefix(), here(), "").unwrap());
    tokio::task::block_in_place(|| other.create(&home.name).unwrap());
    let socket = other.socket().display();
    let url = format!("postgres://{USER}:{PASSWORD}@localhost/{}?host={socket}", home.name);
    let error = refusal(&home, |it| it.address = url.parse().unwrap()).await;
    assert!(error.contains("another cluster") && error.contains("store accept"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_to_a_server_that_says_nothing_ends_within_a_part_of_the_hold_time() {
    let home = Database::fresh();
    let proxy = Proxy::of(&home.server).await;
    let mut store = open_at(&home, &[&proxy]).await;
    store.commit(&[event(1, Event::Opened(0))], None).await.unwrap();
    // It holds what the commit waits for, through every try.
    let mut other = PgConnection::connect(&home.url()).await.unwrap();
    other.execute("BEGIN; SELECT 1 FROM edges FOR UPDATE").await.unwrap();
    let asked = std::time::Instant::now();
    let error = store.commit(&[event(1, Event::Paid(1))], None).await.unwrap_err();
    assert!(error.to_string().contains("no answer"), "{error}");
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(4), "the least is 2 s, and it took {took:?}");
    other.execute("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sign_of_life_is_given_while_a_large_ledger_is_read() {
    let home = Database::fresh();
    let mut store = open(&home).await.unwrap();
    let beat = || home.sql("SELECT beat FROM edges").parse::<i64>().unwrap();
    let before = beat();
    tokio::time::sleep(Duration::from_millis(200)).await;
    store.load::<Event>().await.unwrap();
    assert!(beat() > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_is_told_and_used_again_when_it_is_back() {
    let mut server = tokio::task::block_in_place(|| Server::start(&prefix(), here(), "").unwrap());
    server.create("fleet").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let url =
        format!("postgres://{USER}:{PASSWORD}@localhost/fleet?host={}", server.socket().display());
    let place = Place { directory: directory.path().to_owned(), fleet: Some(fleet(&url, "one")) };
    let open = || Store::open(&place, StoreRole::Provider, Network::Regtest);
    let mut store = open().await.unwrap();
    store.load::<Event>().await.unwrap();
    store.commit(&[event(1, Event::Opened(0))], None).await.unwrap();
    tokio::task::block_in_place(|| server.stop().unwrap());
    let error = store.commit(&[event(1, Event::Paid(1))], None).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    drop(store);
    assert!(matches!(open().await, Err(StoreError::Unreachable { .. })));
    tokio::task::block_in_place(|| server.launch().unwrap());
    let mut store = open().await.unwrap();
    assert_eq!(store.load::<Event>().await.unwrap(), [event(1, Event::Opened(0))]);
    store.commit(&[event(1, Event::Paid(2))], None).await.unwrap();
}
