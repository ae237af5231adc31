//! Seed words, and what people get wrong when they copy them.

use std::fmt;

use bip39::{Language, Mnemonic};
use zeroize::Zeroizing;

/// Entropy of 12 words, in octets.
const ENTROPY_OCTETS: usize = 16;
/// Nearest words that are named for one that is not on the list.
const NEAREST_MAX: usize = 3;
/// Letters that a word may differ in from those that are named for it.
const DISTANCE_MAX: usize = 2;

/// Why some text is no seed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordsError {
    /// Not words of the list.
    #[error("{}", typos(.0))]
    Unknown(Vec<Typo>),
    /// Words that don't belong together.
    #[error(
        "the words are all on the list but do not fit together: one of them is another, or their order is; look at the paper again"
    )]
    Checksum,
    /// Too many or too few.
    #[error("seed words are 12, 15, 18, 21 or 24, and these are {0}; is one missing?")]
    Count(usize),
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// A word that is not on BIP39's English list.
#[derive(Clone, PartialEq, Eq)]
pub struct Typo {
    /// The first word is 1.
    pub position: usize,
    /// Words of the list that are written nearly the same, at most three.
    pub nearest: Vec<&'static str>,
}

impl fmt::Debug for Typo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Typo({}, ..)", self.position)
    }
}

fn typos(typos: &[Typo]) -> String {
    let told = typos.iter().map(|typo| {
        let position = typo.position;
        match typo.nearest.as_slice() {
            [] => format!("word {position} is not on BIP39's English list; check its spelling"),
            near => format!(
                "word {position} is not on BIP39's English list; do you mean {}?",
                near.join(" or ")
            ),
        }
    });
    told.collect::<Vec<_>>().join("\n")
}

/// Seed words (BIP39, English). Overwritten in memory when dropped; never shown by `Debug`.
#[derive(Clone)]
pub struct Words(Zeroizing<String>);

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Words(..)")
    }
}

impl Words {
    /// 12 new words.
    pub fn generate() -> Result<Self, WordsError> {
        let mut entropy = Zeroizing::new([0; ENTROPY_OCTETS]);
        getrandom::fill(entropy.as_mut_slice()).map_err(WordsError::Random)?;
        let words = Mnemonic::from_entropy(entropy.as_slice()).map_err(|_| WordsError::Checksum)?;
        Ok(Self(Zeroizing::new(words.to_string())))
    }

    /// Words that a person wrote down. The numbers of a numbered list are passed over.
    pub fn parse(text: &str) -> Result<Self, WordsError> {
        // Room for all, so that no half of it is left behind when it grows.
        let mut words = Zeroizing::new(String::with_capacity(text.len()));
        let is_word = |word: &&str| word.trim_end_matches(['.', ')', ':']).parse::<u8>().is_err();
        for word in text.split_whitespace().filter(is_word) {
            if !words.is_empty() {
                words.push(' ');
            }
            words.extend(word.chars().flat_map(char::to_lowercase));
        }
        match Mnemonic::parse_in_normalized(Language::English, &words) {
            Ok(_) => Ok(Self(words)),
            Err(bip39::Error::BadWordCount(count)) => Err(WordsError::Count(count)),
            Err(bip39::Error::UnknownWord(_)) => Err(WordsError::Unknown(unknown(&words))),
            Err(_) => Err(WordsError::Checksum),
        }
    }

    /// Each, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(' ')
    }

    /// With a blank between any two.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// BIP39's seed, without a passphrase.
    pub(super) fn seed(&self) -> Zeroizing<[u8; 64]> {
        let words = Mnemonic::parse_in_normalized(Language::English, &self.0);
        Zeroizing::new(words.expect("the words were checked").to_seed_normalized(""))
    }
}

fn unknown(words: &str) -> Vec<Typo> {
    let listed = |word: &str| Language::English.find_word(word).is_some();
    let unknown = words.split(' ').enumerate().filter(|(_, word)| !listed(word));
    unknown.map(|(i, word)| Typo { position: i + 1, nearest: nearest(word) }).collect()
}

/// Words of the list that take the fewest changes to be `word`, if they take few.
fn nearest(word: &str) -> Vec<&'static str> {
    let mut best = DISTANCE_MAX;
    let mut found = Vec::new();
    for listed in Language::English.word_list() {
        let distance = distance(word, listed);
        if distance < best {
            found.clear();
            best = distance;
        }
        if distance == best {
            found.push(*listed);
        }
    }
    // One of many is of no help.
    if found.len() > NEAREST_MAX { Vec::new() } else { found }
}

/// Letters to insert, leave out, replace or swap with their neighbour (optimal string alignment).
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=other.len()).collect();
    for (i, letter) in (1usize..).zip(&one) {
        let mut row = vec![i];
        for (j, against) in (1usize..).zip(&other) {
            let at = |row: &[usize], j: usize| row.get(j).copied().unwrap_or(usize::MAX / 2);
            let replaced = at(&above, j - 1) + usize::from(letter != against);
            let mut least = replaced.min(at(&above, j) + 1).min(at(&row, j - 1) + 1);
            let swapped = i > 1
                && j > 1
                && one.get(i - 2) == Some(against)
                && other.get(j - 2) == Some(letter);
            if swapped {
                least = least.min(at(&before, j - 2) + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BIP39's test vector.
    const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon \
        abandon abandon abandon about";

    fn told(from: &str, to: &str) -> String {
        Words::parse(&ABANDON.replacen(from, to, 1)).unwrap_err().to_string()
    }

    #[test]
    fn words_that_were_copied_wrong_are_told_apart() {
        assert!(told("about", "abuot").contains("word 12"), "{}", told("about", "abuot"));
        assert!(told("about", "abuot").contains("do you mean about?"));
        assert!(told("abandon", "abandonn").contains("word 1 "));
        assert!(told("abandon", "xyzzyqux").contains("check its spelling"));
        assert!(told("about", "zoo").contains("fit together"));
        assert!(told(" about", "").contains("these are 11"));
        assert!(told(ABANDON, "").contains("these are 0"));
        let two =
            Words::parse(&ABANDON.replace("about", "abuot").replacen("abandon", "abadnon", 1));
        let two = two.unwrap_err();
        assert!(matches!(&two, WordsError::Unknown(typos) if typos.len() == 2), "{two}");
        assert!(!format!("{two:?}").contains("about"), "{two:?}");
    }

    #[test]
    fn words_are_taken_however_they_were_written_down() {
        assert!(Words::parse(&format!("\n {} \n", ABANDON.to_uppercase())).is_ok());
        let lines = (1..).zip(ABANDON.split(' ')).map(|(i, word)| format!("{i}. {word}"));
        let numbered: Vec<_> = lines.collect();
        assert_eq!(Words::parse(&numbered.join("\n")).unwrap().text(), ABANDON);
        assert_eq!(format!("{:?}", Words::parse(ABANDON).unwrap()), "Words(..)");
    }

    #[test]
    fn new_words_are_words_and_each_time_others() {
        let (one, other) = (Words::generate().unwrap(), Words::generate().unwrap());
        assert_eq!(one.iter().count(), 12);
        assert_ne!(one.text(), other.text());
        assert!(Words::parse(one.text()).is_ok());
    }

    #[test]
    fn a_swap_is_one_change_and_so_is_a_letter() {
        for (one, other, changes) in
            [("about", "abuot", 1), ("about", "bout", 1), ("about", "abxut", 1), ("", "zoo", 3)]
        {
            assert_eq!(distance(one, other), changes, "{one} {other}");
            assert_eq!(distance(other, one), changes, "{other} {one}");
        }
    }
}
