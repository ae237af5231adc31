//! A real PostgreSQL: a cluster in a folder of its own, with a synchronous standby where one is
//! asked for.
//!
//! It runs as a user without rights, since it refuses root, and dies with us, whatever ends us. The
//! unit tests of the store include this file: it needs nothing else of this crate.

use std::{
    env, fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    process::{Gid, Pid, Signal, Uid, geteuid, kill_process, set_parent_process_death_signal},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use tempfile::TempDir;

/// Who uses the databases. It may make some, and nothing else.
pub const USER: &str = "bitmesh";
/// Its password, which only tests know.
pub const PASSWORD: &str = "lab";
/// Port, and name of the socket.
pub const PORT: u16 = 5_432;
/// What a standby calls itself.
const STANDBY: &str = "standby";
/// Where Debian keeps the programs of each version.
const DEBIAN: &str = "/usr/lib/postgresql";
/// The user and group `nobody`, who is everywhere.
const NOBODY: u32 = 65_534;
/// Time that a server has to start, to stop, or to follow another.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often a wait looks.
const POLL: Duration = Duration::from_millis(20);

/// The databases' administrator comes by the socket, which only we reach; all others say a password.
const RULES: &str = "local all postgres trust\nlocal replication postgres trust\n\
    local all all scram-sha-256\nlocal replication all scram-sha-256\nhost all all all scram-sha-256\n\
    host replication all all scram-sha-256\n";

/// What differs from the defaults, but where to listen.
const SETTINGS: &str = "port = 5432\nunix_socket_permissions = 0777\nshared_buffers = 32MB\n\
    max_connections = 60\nwal_level = replica\nmax_wal_senders = 8\nwal_keep_size = 64MB\n\
    hot_standby = on\nsynchronous_commit = on\nlog_min_messages = warning\n\
    wal_receiver_timeout = 5s\nwal_sender_timeout = 5s\nwal_retrieve_retry_interval = 500ms\n";

/// Where the programs are: `PG_BIN`, then what `pg_config` on `PATH` says, then Debian's newest.
pub fn programs() -> Result<PathBuf> {
    let named = env::var_os("PG_BIN").map(PathBuf::from);
    let told = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output().ok();
    let told = told.and_then(|output| String::from_utf8(output.stdout).ok());
    let told = told.map(|text| PathBuf::from(text.trim()));
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let mut versions: Vec<_> =
        versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    let debian = versions.iter().map(|version| format!("{DEBIAN}/{version}/bin").into());
    named
        .into_iter()
        .chain(told)
        .chain(debian)
        .find(|folder: &PathBuf| folder.join("initdb").is_file())
        .context("no PostgreSQL server; run `cargo xtask setup`, or set PG_BIN to its programs")
}

/// Makes the command that starts a program: here, or in a network namespace.
pub type Launch<'a> = Box<dyn Fn(&Path) -> Result<Command> + Send + Sync + 'a>;

/// In the network that we are in.
pub fn here() -> Launch<'static> {
    Box::new(|program| Ok(Command::new(program)))
}

/// A cluster. Ended and removed when dropped.
pub struct Server<'a> {
    launch: Launch<'a>,
    programs: PathBuf,
    folder: TempDir,
    running: Option<Running>,
}

/// The first process, and the thread that it dies with.
struct Running {
    process: Child,
    _parent: mpsc::Sender<()>,
}

impl<'a> Server<'a> {
    /// A new cluster, started, which listens on a socket, and on `addresses` where there are some
    /// (as PostgreSQL takes them). `name` is a prefix for its folder.
    pub fn start(name: &str, launch: Launch<'a>, addresses: &str) -> Result<Self> {
        let mut server = Self::prepare(name, launch)?;
        let data = server.data();
        let mut initdb = server.command("initdb")?;
        initdb.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        finish(initdb.args(["--username=postgres", "--pgdata"]).arg(&data))?;
        fs::write(data.join("pg_hba.conf"), RULES)?;
        server.configure(addresses)?;
        server.launch()?;
        let role = format!("CREATE ROLE {USER} LOGIN CREATEDB PASSWORD '{PASSWORD}'");
        server.sql("postgres", &role)?;
        Ok(server)
    }

    /// A standby of this cluster, which it reaches at `host` (an address, or the folder of its
    /// socket). From now on a commit here is acknowledged only after the standby has it, too.
    pub fn standby<'b>(
        &self,
        name: &str,
        launch: Launch<'b>,
        host: &str,
        addresses: &str,
    ) -> Result<Server<'b>> {
        self.sql("postgres", &format!("ALTER ROLE {USER} REPLICATION"))?;
        let mut server = Server::prepare(name, launch)?;
        let from = format!(
            "host={host} port={PORT} user={USER} password={PASSWORD} application_name={STANDBY} \
             connect_timeout=3"
        );
        let mut backup = server.command("pg_basebackup")?;
        backup.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--dbname", &from]);
        finish(backup.arg("--pgdata").arg(server.data()))?;
        server.configure(addresses)?;
        server.launch()?;
        self.sql("postgres", &format!("ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'"))?;
        self.sql("postgres", "SELECT pg_reload_conf()")?;
        let state = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'";
        wait("the standby to follow", || Ok(self.sql("postgres", state)? == "1"))?;
        Ok(server)
    }

    fn prepare(name: &str, launch: Launch<'a>) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(name).tempdir()?;
        if geteuid().is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY))?;
        }
        Ok(Self { launch, programs: programs()?, folder, running: None })
    }

    fn configure(&self, addresses: &str) -> Result<()> {
        let place = format!(
            "listen_addresses = '{addresses}'\nunix_socket_directories = '{}'\n",
            self.folder.path().display()
        );
        Ok(fs::write(self.data().join("postgresql.conf"), format!("{SETTINGS}{place}"))?)
    }

    /// Starts the server again, on what it had, and waits until it answers.
    pub fn launch(&mut self) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("server.log"))?;
        let mut command = self.command("postgres")?;
        command.arg("-D").arg(self.data()).stdout(log.try_clone()?).stderr(log);
        let (started, child) = mpsc::channel();
        let (parent, ended) = mpsc::channel::<()>();
        thread::spawn(move || {
            let _ = started.send(command.spawn());
            let _ = ended.recv();
        });
        let process = child.recv()?.context("starting postgres; run `cargo xtask setup`")?;
        self.running = Some(Running { process, _parent: parent });
        wait("PostgreSQL to start", || {
            let running = self.running.as_mut().context("it was not started")?;
            if let Some(status) = running.process.try_wait()? {
                bail!("PostgreSQL ended ({status}): {}", self.log());
            }
            Ok(self.sql("postgres", "SELECT 1").is_ok())
        })
    }

    /// Folder of the socket.
    pub fn socket(&self) -> &Path {
        self.folder.path()
    }

    /// What the server wrote down.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }

    /// Makes an empty database.
    pub fn create(&self, database: &str) -> Result<()> {
        self.sql("postgres", &format!("CREATE DATABASE {database} OWNER {USER}")).map(drop)
    }

    /// Runs statements as the administrator: what they print, columns with `|` between.
    pub fn sql(&self, database: &str, statements: &str) -> Result<String> {
        let mut psql = self.command("psql")?;
        psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--username=postgres"])
            .args(["--set=ON_ERROR_STOP=1", "--port", &PORT.to_string(), "--host"])
            .arg(self.folder.path())
            .args(["--dbname", database, "--command", statements]);
        finish(&mut psql)
    }

    /// Makes a standby the primary, and waits until it is.
    pub fn promote(&self) -> Result<()> {
        self.sql("postgres", "SELECT pg_promote(false)")?;
        let ask = || self.sql("postgres", "SELECT pg_is_in_recovery()");
        wait("the standby to be promoted", || Ok(ask()? == "f"))
    }

    /// Ends the server in order: connections are cut, everything is on the disk.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        let pid = Pid::from_child(&running.process);
        kill_process(pid, Signal::INT)?;
        running.process.wait()?;
        Ok(())
    }

    /// Ends every process of the server at once, as a power cut does.
    pub fn kill(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        let workers = children(running.process.id());
        let _ = running.process.kill();
        let _ = running.process.wait();
        for worker in &workers {
            let _ = kill_process(*worker, Signal::KILL);
        }
        // They are not ours to wait for, and hold the cluster's memory until they are gone.
        let _ = wait("its workers to end", || Ok(workers.iter().all(|worker| is_gone(*worker))));
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = (self.launch)(&self.programs.join(program))?;
        command.env_clear().envs([("LC_ALL", "C"), ("TZ", "UTC"), ("PATH", "/usr/bin:/bin")]);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        let rootly = geteuid().is_root();
        // SAFETY: between fork and exec only system calls are made, on values that are copied.
        unsafe {
            command.pre_exec(move || {
                if rootly {
                    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
                    set_thread_groups(&[])?;
                    set_thread_res_gid(gid, gid, gid)?;
                    set_thread_res_uid(uid, uid, uid)?;
                }
                // After that: who changes its user loses it.
                Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
            });
        }
        Ok(command)
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Children of a process; none when it is gone.
fn children(process: u32) -> Vec<Pid> {
    let path = format!("/proc/{process}/task/{process}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

/// Whether a process has ended, be it that nobody has asked for its status yet.
fn is_gone(process: Pid) -> bool {
    let command = fs::read(format!("/proc/{}/cmdline", process.as_raw_nonzero()));
    command.map_or(true, |text| text.is_empty())
}

/// Runs a program to its end: what it printed.
fn finish(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn wait(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !done()? {
        if Instant::now() > deadline {
            bail!("waited {} s for {what}", DEADLINE.as_secs());
        }
        thread::sleep(POLL);
    }
    Ok(())
}
