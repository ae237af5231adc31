//! A seed file's content: words sealed with argon2id (RFC 9106) and XChaCha20-Poly1305.
//!
//! What stands outside of the seal is authenticated by it. What a file may ask for, in memory and
//! time, is bounded: it may be anybody's.

use argon2::{Algorithm, Argon2, Params};
use bdk_wallet::bitcoin::{
    Network,
    bip32::Fingerprint,
    hashes::{Hash as _, HashEngine as _, sha256},
};
use chacha20poly1305::{
    XChaCha20Poly1305,
    aead::{Aead as _, KeyInit as _, Payload},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;
use zeroize::Zeroizing;

/// Of what is written here.
const VERSION: u64 = 1;
/// Memory that a passphrase costs, in KiB, and passes over it: RFC 9106's second choice, by one
/// thread, since an edge box may have no more.
const MEMORY_KIB: u32 = 65_536;
const PASSES: u32 = 3;
/// Most that a file may ask for: a quarter of a GiB, and some seconds on a slow box.
const MEMORY_MAX_KIB: u32 = 262_144;
const PASSES_MAX: u32 = 10;
const LANES_MAX: u32 = 4;
/// Octets of the sum that tells a damaged file from a wrong passphrase.
const CHECK_OCTETS: usize = 8;

/// Why a file gives no words.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// Not what this program writes.
    #[error(
        "is no seed file ({0}); put a copy of it there, or move it away and bring the wallet back from its words: `bitmesh wallet restore`"
    )]
    Malformed(String),
    /// Of another version.
    #[error("has format {0}, and this bitmesh knows format {VERSION}; use the newer one")]
    Version(u64),
    /// It is not as it was written.
    #[error(
        "was damaged or changed; put a copy of it there, or move it away and bring the wallet back from its words: `bitmesh wallet restore`"
    )]
    Changed,
    /// It would take too much to open.
    #[error("asks for more memory or time than a seed file may; where is it from?")]
    Costs,
    /// It is intact, and stays shut.
    #[error(
        "is not opened by this passphrase; try again. If it is forgotten, the words bring the wallet back: `bitmesh wallet restore`"
    )]
    WrongPassphrase,
    /// The same of a key from a file.
    #[error("is not opened by the key beside it; put the seed.key there that belongs to it")]
    WrongKey,
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// What opens a file.
pub(super) enum Secret<'a> {
    /// A person's.
    Passphrase(&'a str),
    /// Random, and kept beside it.
    Key(&'a [u8; KEY_OCTETS]),
}

/// Of the cipher's key.
pub(super) const KEY_OCTETS: usize = 32;

/// How the cipher's key comes from the secret.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(tag = "name", rename_all = "kebab-case", deny_unknown_fields)]
enum Kdf {
    Argon2id { memory_kib: u32, passes: u32, lanes: u32, salt: Hex<16> },
    KeyFile,
}

/// Authenticated, as serde writes it.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u64,
    network: Network,
    fingerprint: Fingerprint,
    birthday: u32,
    cipher: Cipher,
    kdf: Kdf,
    nonce: Hex<24>,
}

#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Cipher {
    #[serde(rename = "xchacha20-poly1305")]
    XChaCha20Poly1305,
}

/// Words that are shut.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Vault {
    header: Header,
    sealed: String,
    check: Hex<CHECK_OCTETS>,
}

impl Vault {
    /// Shuts `words` in.
    pub(super) fn seal(
        words: &str,
        secret: &Secret<'_>,
        network: Network,
        fingerprint: Fingerprint,
        birthday: u32,
    ) -> Result<Self, VaultError> {
        let kdf = match secret {
            Secret::Passphrase(_) => Kdf::Argon2id {
                memory_kib: MEMORY_KIB,
                passes: PASSES,
                lanes: 1,
                salt: Hex::random()?,
            },
            Secret::Key(_) => Kdf::KeyFile,
        };
        let nonce = Hex::random()?;
        let cipher = Cipher::XChaCha20Poly1305;
        let header =
            Header { version: VERSION, network, fingerprint, birthday, cipher, kdf, nonce };
        let aad = header.octets();
        let payload = Payload { msg: words.as_bytes(), aad: &aad };
        let key = header.key(secret)?;
        let sealed = XChaCha20Poly1305::new(&(*key).into())
            .encrypt(&nonce.0.into(), payload)
            .map_err(|_| VaultError::Changed)?;
        Ok(Self { header, check: header.check(&sealed), sealed: hex::encode(sealed) })
    }

    /// Reads a file. Nothing is opened yet.
    pub(super) fn parse(text: &[u8]) -> Result<Self, VaultError> {
        let malformed = |error: serde_json::Error| {
            // Where, and not what: it may be words that somebody wrote there.
            VaultError::Malformed(format!("line {}, column {}", error.line(), error.column()))
        };
        let value: Value = serde_json::from_slice(text).map_err(malformed)?;
        let version = value.pointer("/header/version").and_then(Value::as_u64);
        match version.ok_or_else(|| VaultError::Malformed("it names no version".into()))? {
            VERSION => {}
            other => return Err(VaultError::Version(other)),
        }
        let vault: Self = serde_json::from_value(value)
            .map_err(|_| VaultError::Malformed("its fields are others".into()))?;
        let sealed = hex::decode(&vault.sealed).map_err(|_| VaultError::Changed)?;
        if vault.header.check(&sealed) != vault.check {
            return Err(VaultError::Changed);
        }
        Ok(vault)
    }

    /// What is written to the file.
    pub(super) fn text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// The words, as they were shut in.
    pub(super) fn open(&self, secret: &Secret<'_>) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let wrong = || match secret {
            Secret::Passphrase(_) => VaultError::WrongPassphrase,
            Secret::Key(_) => VaultError::WrongKey,
        };
        let sealed = hex::decode(&self.sealed).map_err(|_| VaultError::Changed)?;
        let aad = self.header.octets();
        let key = self.header.key(secret)?;
        XChaCha20Poly1305::new(&(*key).into())
            .decrypt(&self.header.nonce.0.into(), Payload { msg: &sealed, aad: &aad })
            .map(Zeroizing::new)
            .map_err(|_| wrong())
    }

    /// Whether a person's passphrase opens it, and not a file's key.
    pub(super) fn takes_passphrase(&self) -> bool {
        matches!(self.header.kdf, Kdf::Argon2id { .. })
    }

    /// The chain that the wallet is on.
    pub(super) fn network(&self) -> Network {
        self.header.network
    }

    /// Names the words without telling them.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        self.header.fingerprint
    }

    /// Height of a block before which nothing was received.
    pub(super) fn birthday(&self) -> u32 {
        self.header.birthday
    }
}

impl Header {
    fn octets(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    fn check(&self, sealed: &[u8]) -> Hex<CHECK_OCTETS> {
        let mut engine = sha256::Hash::engine();
        engine.input(&self.octets());
        engine.input(sealed);
        let sum = sha256::Hash::from_engine(engine).to_byte_array();
        Hex(*sum.first_chunk().unwrap_or(&[0; CHECK_OCTETS]))
    }

    fn key(&self, secret: &Secret<'_>) -> Result<Zeroizing<[u8; KEY_OCTETS]>, VaultError> {
        match (self.kdf, secret) {
            (Kdf::Argon2id { memory_kib, passes, lanes, salt }, Secret::Passphrase(passphrase)) => {
                if memory_kib > MEMORY_MAX_KIB || passes > PASSES_MAX || lanes > LANES_MAX {
                    return Err(VaultError::Costs);
                }
                let costs = Params::new(memory_kib, passes, lanes, Some(KEY_OCTETS));
                let costs = costs.map_err(|_| VaultError::Costs)?;
                let mut key = Zeroizing::new([0; KEY_OCTETS]);
                Argon2::new(Algorithm::Argon2id, argon2::Version::V0x13, costs)
                    .hash_password_into(passphrase.as_bytes(), &salt.0, key.as_mut_slice())
                    .map_err(|_| VaultError::Costs)?;
                Ok(key)
            }
            (Kdf::KeyFile, Secret::Key(key)) => Ok(Zeroizing::new(**key)),
            (Kdf::Argon2id { .. }, Secret::Key(_)) => Err(VaultError::WrongKey),
            (Kdf::KeyFile, Secret::Passphrase(_)) => Err(VaultError::WrongPassphrase),
        }
    }
}

/// Octets that are written as hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hex<const N: usize>([u8; N]);

impl<const N: usize> Hex<N> {
    fn random() -> Result<Self, VaultError> {
        let mut octets = [0; N];
        getrandom::fill(&mut octets).map_err(VaultError::Random)?;
        Ok(Self(octets))
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut octets = [0; N];
        hex::decode_to_slice(text, &mut octets).map_err(de::Error::custom)?;
        Ok(Self(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = "abandon ability able";

    fn sealed(secret: &Secret<'_>) -> Vault {
        Vault::seal(WORDS, secret, Network::Regtest, Fingerprint::default(), 7).unwrap()
    }

    #[test]
    fn only_the_same_secret_opens_what_was_shut_in() {
        let vault = sealed(&Secret::Passphrase("correct horse"));
        let vault = Vault::parse(vault.text().as_bytes()).unwrap();
        assert_eq!((vault.birthday(), vault.takes_passphrase()), (7, true));
        assert_eq!(*vault.open(&Secret::Passphrase("correct horse")).unwrap(), WORDS.as_bytes());
        let wrong = vault.open(&Secret::Passphrase("correct horsf")).unwrap_err();
        assert!(matches!(wrong, VaultError::WrongPassphrase), "{wrong}");
        let wrong = vault.open(&Secret::Key(&[0; 32])).unwrap_err();
        assert!(matches!(wrong, VaultError::WrongKey), "{wrong}");

        let vault = sealed(&Secret::Key(&[1; 32]));
        assert!(!vault.takes_passphrase());
        assert_eq!(*vault.open(&Secret::Key(&[1; 32])).unwrap(), WORDS.as_bytes());
        let wrong = vault.open(&Secret::Key(&[2; 32])).unwrap_err();
        assert!(matches!(wrong, VaultError::WrongKey), "{wrong}");
        assert!(vault.open(&Secret::Passphrase("")).is_err());
    }

    #[test]
    fn the_same_words_are_never_shut_in_the_same_way() {
        let (one, other) = (sealed(&Secret::Key(&[1; 32])), sealed(&Secret::Key(&[1; 32])));
        assert_ne!(one.sealed, other.sealed);
        assert!(!one.text().contains("abandon"));
    }

    #[test]
    fn a_file_that_was_cut_or_changed_anywhere_is_refused() {
        let text = sealed(&Secret::Key(&[1; 32])).text();
        for cut in 0..text.trim_end().len() {
            assert!(Vault::parse(&text.as_bytes()[..cut]).is_err(), "{cut} octets");
        }
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] ^= 1;
            let opens = Vault::parse(&changed).is_ok_and(|vault| {
                let same = vault == Vault::parse(text.as_bytes()).unwrap();
                !same && vault.open(&Secret::Key(&[1; 32])).is_ok()
            });
            assert!(!opens, "octet {at} of {text}");
        }
    }

    #[test]
    fn a_header_that_fits_its_sum_and_not_its_seal_stays_shut() {
        let mut vault = sealed(&Secret::Key(&[1; 32]));
        vault.header.birthday = 8;
        vault.check = vault.header.check(&hex::decode(&vault.sealed).unwrap());
        let vault = Vault::parse(vault.text().as_bytes()).unwrap();
        let shut = vault.open(&Secret::Key(&[1; 32])).unwrap_err();
        assert!(matches!(shut, VaultError::WrongKey), "{shut}");
    }

    #[test]
    fn a_newer_format_is_told_from_a_damaged_one() {
        let text = sealed(&Secret::Key(&[1; 32])).text();
        let newer = text.replace("\"version\": 1", "\"version\": 2");
        assert!(matches!(Vault::parse(newer.as_bytes()), Err(VaultError::Version(2))));
        let plain = Vault::parse(WORDS.as_bytes()).unwrap_err();
        assert!(matches!(plain, VaultError::Malformed(_)), "{plain}");
        assert!(!plain.to_string().contains("abandon"), "{plain}");
        let other = Vault::parse(b"{\"header\": {\"version\": 1}}").unwrap_err();
        assert!(matches!(other, VaultError::Malformed(_)), "{other}");
    }

    #[test]
    fn a_file_can_ask_for_a_quarter_of_a_gib_and_no_more() {
        let salt = Hex([0; 16]);
        let costs = |memory_kib, passes, lanes| {
            let mut vault = sealed(&Secret::Key(&[1; 32]));
            vault.header.kdf = Kdf::Argon2id { memory_kib, passes, lanes, salt };
            vault.open(&Secret::Passphrase("x")).unwrap_err()
        };
        for (memory_kib, passes, lanes) in [
            (MEMORY_MAX_KIB + 1, 1, 1),
            (u32::MAX, 1, 1),
            (8, PASSES_MAX + 1, 1),
            (64, 1, LANES_MAX + 1),
            (8, 0, 1),
            (0, 1, 1),
            (8, 1, 0),
        ] {
            let error = costs(memory_kib, passes, lanes);
            assert!(matches!(error, VaultError::Costs), "{memory_kib} {passes} {lanes}: {error}");
        }
        let within = costs(64, PASSES_MAX, LANES_MAX);
        assert!(matches!(within, VaultError::WrongPassphrase), "{within}");
    }
}
