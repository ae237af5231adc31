//! Where the database of a fleet is: `postgres://USER@HOST[:PORT][,HOST[:PORT]...]/DATABASE`.

use std::{
    env, fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use reqwest::Url;
use sqlx::{
    ConnectOptions as _,
    postgres::{PgConnectOptions, PgSslMode},
};

/// Hosts that an address names at most.
const HOSTS_MAX: usize = 16;
/// What the server's administrator sees.
const APPLICATION: &str = "bitmesh";

/// Where a database is, and who we are there. Printing it shows no password.
#[derive(Clone)]
pub struct Address {
    hosts: Vec<(String, PgConnectOptions)>,
    certificates: Option<PathBuf>,
    shown: String,
    /// Whether the password stands in the text itself.
    names_password: bool,
}

/// Not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a database's address ({0}): write postgres://USER@HOST/DATABASE, several hosts with commas; \
     the password is best kept in a file that --store-password-file names"
)]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = |what: &str| AddressError(what.to_owned());
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"));
        let rest = rest.ok_or_else(|| error("it does not begin with postgres://"))?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if tail.contains('@') {
            return Err(error("an @ behind the first / or ?; in a password those are %2F and %3F"));
        }
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (format!("{user}@"), hosts),
            None => (String::new(), authority),
        };
        let names_password = user.contains(':') || tail.contains("password=");
        let mut known = Vec::new();
        for host in hosts.split(',') {
            if known.len() == HOSTS_MAX {
                return Err(error("too many hosts"));
            }
            let url = format!("postgres://{user}{host}{tail}");
            // What is wrong may have the password in it.
            let options: PgConnectOptions =
                url.parse().map_err(|_| error("a host, a port or an option is not understood"))?;
            let options = options.application_name(APPLICATION).disable_statement_logging();
            if options.get_database().is_none() {
                return Err(error("it names no database"));
            }
            // The brackets of an IPv6 address are the URL's.
            let bare = options.get_host().trim_matches(['[', ']']).to_owned();
            let options = if bare == options.get_host() { options } else { options.host(&bare) };
            let name = options.get_socket().map(|socket| socket.display().to_string());
            known.push((name.unwrap_or_else(|| host.to_owned()), options));
        }
        let names: Vec<_> = known.iter().map(|(name, _)| name.as_str()).collect();
        let first = known.first().map(|(_, options)| options);
        let (user, database) = first.map_or(("", ""), |options| {
            (options.get_username(), options.get_database().unwrap_or_default())
        });
        let shown = format!("postgres://{user}@{}/{database}", names.join(","));
        Ok(Self { hosts: known, certificates: certificates(tail), shown, names_password })
    }
}

impl Address {
    /// Who is asked, in this order, and how.
    pub(super) fn hosts(&self) -> &[(String, PgConnectOptions)] {
        &self.hosts
    }

    /// Says this password, in the place of what `PGPASSFILE` says. One that stands in the address goes
    /// before it.
    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        if !self.names_password {
            for (_, options) in &mut self.hosts {
                *options = options.clone().password(password);
            }
        }
        self
    }

    /// Whether the password stands in the address itself.
    pub fn names_password(&self) -> bool {
        self.names_password
    }

    /// Whether this is what every host is told.
    #[cfg(test)]
    pub(crate) fn has_password(&self, password: &str) -> bool {
        let is = |options: &PgConnectOptions| options.to_url_lossy().password() == Some(password);
        self.hosts.iter().all(|(_, options)| is(options))
    }

    /// Hosts beyond this machine that need not show who they are: who is in between reads and changes
    /// what is said.
    pub(super) fn unverified(&self) -> impl Iterator<Item = &str> {
        let unverified = |options: &PgConnectOptions| {
            !is_here(options) && !matches!(options.get_ssl_mode(), PgSslMode::VerifyFull)
        };
        let hosts = self.hosts.iter().filter(move |(_, options)| unverified(options));
        hosts.map(|(name, _)| name.as_str())
    }

    /// The file with the certificates that have to vouch for a host, where one is named.
    pub(super) fn certificates(&self) -> Option<&Path> {
        let vouches = |(_, options): &(String, PgConnectOptions)| {
            matches!(options.get_ssl_mode(), PgSslMode::VerifyCa | PgSslMode::VerifyFull)
        };
        self.certificates.as_deref().filter(|_| self.hosts.iter().any(vouches))
    }

    /// The database's name.
    pub(super) fn database(&self) -> &str {
        let first = self.hosts.first();
        first.and_then(|(_, options)| options.get_database()).unwrap_or_default()
    }

    /// Who we are.
    pub(super) fn user(&self) -> &str {
        self.hosts.first().map_or("", |(_, options)| options.get_username())
    }
}

/// The file that the options behind a `?`, or the environment as for `psql`, name: not what is in one.
fn certificates(tail: &str) -> Option<PathBuf> {
    let url = Url::parse(&format!("postgres://host{tail}")).ok()?;
    let is_named = |option: &str| ["sslrootcert", "ssl-root-cert", "ssl-ca"].contains(&option);
    let file = url.query_pairs().filter(|(option, _)| is_named(option)).last();
    let file = file.map(|(_, file)| file.into_owned().into());
    let file = file.or_else(|| env::var_os("PGSSLROOTCERT")).map(PathBuf::from);
    file.filter(|file| !file.as_os_str().as_encoded_bytes().starts_with(b"-----BEGIN"))
}

fn is_here(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let is_loopback = || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    let is_socket = options.get_socket().is_some() || host.starts_with('/');
    is_socket || host == "localhost" || is_loopback()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_hosts_are_asked_in_order_and_the_password_is_not_shown() {
        let text = "postgres://me:secret@one,two:5433/fleet?sslmode=require";
        let address: Address = text.parse().unwrap();
        let hosts: Vec<_> = address
            .hosts()
            .iter()
            .map(|(name, options)| (name.as_str(), options.get_host(), options.get_port()))
            .collect();
        assert_eq!(hosts, [("one", "one", 5_432), ("two:5433", "two", 5_433)]);
        assert_eq!(address.to_string(), "postgres://me@one,two:5433/fleet");
        assert!(!format!("{address:?}").contains("secret"));
        let [(_, first), _] = address.hosts() else { panic!("two hosts") };
        assert_eq!(first.to_url_lossy().password(), Some("secret"));
    }

    #[test]
    fn a_password_from_elsewhere_does_not_replace_the_one_that_is_there() {
        let of = |text: &str| {
            let address: Address = text.parse().unwrap();
            let address = address.with_password("other");
            address.hosts()[0].1.to_url_lossy().password().map(str::to_owned)
        };
        assert_eq!(of("postgres://me:secret@one/fleet").as_deref(), Some("secret"));
        assert_eq!(of("postgres://me@two/fleet").as_deref(), Some("other"));
    }

    #[test]
    fn an_ipv6_address_is_one_without_the_brackets_of_a_url() {
        let address: Address = "postgres://me@[fd00::1]:5433,[::1]/fleet".parse().unwrap();
        let hosts: Vec<_> =
            address.hosts().iter().map(|(_, it)| (it.get_host(), it.get_port())).collect();
        assert_eq!(hosts, [("fd00::1", 5_433), ("::1", 5_432)]);
        assert_eq!(address.to_string(), "postgres://me@[fd00::1]:5433,[::1]/fleet");
    }

    #[test]
    fn a_host_elsewhere_has_to_show_who_it_is() {
        let of = |text: &str| {
            let address: Address = text.parse().unwrap();
            address.unverified().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of("postgres://me@one,two:5433/fleet"), ["one", "two:5433"]);
        assert_eq!(of("postgres://me@one,127.0.0.1/fleet?sslmode=require"), ["one"]);
        assert_eq!(of("postgres://me@one/fleet?sslmode=verify-ca"), ["one"]);
        assert!(of("postgres://me@localhost,[::1]/fleet").is_empty());
        assert!(of("postgres://me@%2Frun%2Fpostgresql/fleet").is_empty());
        assert!(of("postgres:///fleet").is_empty());
        assert!(of("postgres://me@one,two/fleet?sslmode=verify-full").is_empty());
    }

    #[test]
    fn certificates_are_in_the_file_that_the_address_names() {
        let of = |text: &str| text.parse::<Address>().unwrap().certificates().map(Path::to_owned);
        let path = Some(Path::new("/etc/bitmesh/databases.crt").to_owned());
        let named = "postgres://me@one/fleet?sslrootcert=/etc/bitmesh/databases.crt";
        assert_eq!(of(&format!("{named}&sslmode=verify-full")), path);
        assert_eq!(of(named), None);
        assert_eq!(of("postgres://me@one/fleet?sslmode=verify-full"), None);
    }

    #[test]
    fn what_is_no_address_is_refused_without_showing_it() {
        for text in [
            "",
            "mysql://me:secret@one/fleet",
            "postgres://me:secret@one",
            "postgres://me:secret@one:port/fleet",
            "postgres://me:secret@one/fleet?sslmode=secret",
            "postgres://me:sec/secret@one/fleet",
            "postgres://me:sec?secret@one/fleet",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("postgres://USER@HOST/DATABASE"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
