//! Against BIP39's and BIP84's own vectors, and a chain made by hand; `tests/` has the real one.

use std::os::unix::fs::PermissionsExt as _;

use bitmesh_core::bitcoin::{
    self, CompactTarget, OutPoint, TxIn, TxMerkleNode, TxOut,
    absolute::LockTime,
    block::{Header, Version},
    consensus::Encodable as _,
    hashes::Hash,
    transaction,
};

use super::{seed::SeedError, *};

/// BIP84's test vector.
const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
    abandon abandon about";
/// The chain's first block, which every wallet knows.
fn genesis() -> (u32, BlockHash) {
    (0, BlockHash::all_zeros())
}

fn words() -> Words {
    Words::parse(ABANDON).unwrap()
}

fn wallet() -> Wallet {
    Wallet::create(&words(), Network::Regtest, genesis()).unwrap()
}

/// A block on the wallet's tip with one transaction, which pays `value` to `script`.
fn paying(wallet: &Wallet, script: ScriptBuf, value: u64) -> (Block, u32) {
    let tip = wallet.inner.latest_checkpoint();
    let tx = Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(bitcoin::Txid::from_byte_array([7; 32]), 0),
            ..TxIn::default()
        }],
        output: vec![TxOut { value: Amount::from_sat(value), script_pubkey: script }],
    };
    let header = Header {
        version: Version::TWO,
        prev_blockhash: tip.hash(),
        merkle_root: TxMerkleNode::all_zeros(),
        time: 0,
        bits: CompactTarget::from_consensus(0),
        nonce: 0,
    };
    (Block { header, txdata: vec![tx] }, tip.height() + 1)
}

#[test]
fn the_first_address_is_the_one_of_bip84() {
    let mut wallet = Wallet::create(&words(), Network::Bitcoin, genesis()).unwrap();
    let address = wallet.next_address().to_string();
    assert_eq!(address, "bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu");
    assert_eq!(wallet.fingerprint().to_string(), "73c5da0a");
}

#[test]
fn keys_are_the_same_each_time_and_never_each_others() {
    let (one, again) = (wallet(), wallet());
    let key = |wallet: &Wallet, role, index| wallet.channel_public_key(role, index);
    assert_eq!(key(&one, Role::Provider, 5), key(&again, Role::Provider, 5));
    assert_ne!(key(&one, Role::Provider, 5), key(&one, Role::Provider, 6));
    assert_ne!(key(&one, Role::Provider, 5), key(&one, Role::Subscriber, 5));
    let main = Wallet::create(&words(), Network::Bitcoin, genesis()).unwrap();
    assert_ne!(key(&main, Role::Provider, 5), key(&one, Role::Provider, 5));
    assert_ne!(main.node_public_key(), one.node_public_key());
}

#[test]
fn signatures_verify_under_the_keys_that_were_told() {
    let wallet = wallet();
    let message = Message::from_digest([3; 32]);
    let secp = wallet.keys.secp();
    let signature = wallet.sign_channel(Role::Subscriber, 1, message);
    let key = wallet.channel_public_key(Role::Subscriber, 1);
    secp.verify_ecdsa(&message, &signature, &key).unwrap();
    let signature = wallet.sign_node(message);
    secp.verify_schnorr(&signature, &message, &wallet.node_public_key()).unwrap();
}

#[test]
fn what_was_stored_is_the_same_wallet() {
    let mut wallet = wallet();
    let script = wallet.next_address().script_pubkey();
    let (block, height) = paying(&wallet, script, 70_000);
    let mut changes: Vec<String> = wallet.take_changes().unwrap().into_iter().collect();
    wallet.connect_block(&block, height).unwrap();
    changes.extend(wallet.take_changes().unwrap());
    assert_eq!(wallet.take_changes().unwrap(), None);
    let mut again = Wallet::load(&words(), Network::Regtest, &changes).unwrap();
    assert_eq!(again.balance(), wallet.balance());
    assert_eq!(again.balance().confirmed, Amount::from_sat(70_000));
    assert_eq!(again.next_address(), wallet.next_address());
}

#[test]
fn the_words_find_money_behind_addresses_that_were_never_used() {
    let mut before = wallet();
    let scripts = [(); 150].map(|()| before.next_address().script_pubkey());
    let (block, height) = paying(&before, scripts[149].clone(), 70_000);
    let mut again = wallet();
    again.connect_block(&block, height).unwrap();
    assert_eq!(again.balance().confirmed, Amount::from_sat(70_000));
    assert!(!scripts.contains(&again.next_address().script_pubkey()));
}

#[test]
fn a_block_that_is_replaced_takes_its_money_with_it() {
    let mut wallet = wallet();
    let script = wallet.next_address().script_pubkey();
    let (block, height) = paying(&wallet, script, 70_000);
    let (mut other, _) = paying(&wallet, ScriptBuf::new(), 1);
    other.header.nonce = 1;
    wallet.connect_block(&block, height).unwrap();
    wallet.connect_block(&other, height).unwrap();
    assert_eq!(wallet.balance().confirmed, Amount::ZERO);
}

#[test]
fn the_wrong_words_or_chain_are_noticed() {
    let mut wallet = wallet();
    let changes: Vec<String> = wallet.take_changes().unwrap().into_iter().collect();
    let other = Words::generate().unwrap();
    let loaded = Wallet::load(&other, Network::Regtest, &changes).err();
    assert!(matches!(loaded, Some(WalletError::WrongSeed)), "{loaded:?}");
    let loaded = Wallet::load(&words(), Network::Signet, &changes).err();
    assert!(matches!(loaded, Some(WalletError::WrongNetwork { .. })), "{loaded:?}");
    let loaded = Wallet::load(&words(), Network::Regtest, &["nonsense".into()]).err();
    assert!(matches!(loaded, Some(WalletError::Damaged(_))), "{loaded:?}");
}

#[test]
fn funding_pays_exactly_what_was_asked_or_says_what_is_missing() {
    let mut wallet = wallet();
    let script = wallet.next_address().script_pubkey();
    let (block, height) = paying(&wallet, script, 70_000);
    wallet.connect_block(&block, height).unwrap();
    let rate = FeeRate::from_sat_per_vb(2).unwrap();
    let to = ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::hash(b"channel"));
    let short = wallet.fund(to.clone(), Amount::from_sat(70_000), rate, 1).err();
    assert!(matches!(short, Some(WalletError::Insufficient { .. })), "{short:?}");
    let tx = wallet.fund(to.clone(), Amount::from_sat(50_000), rate, 1).unwrap();
    let paid: Vec<_> = tx.output.iter().filter(|output| output.script_pubkey == to).collect();
    assert_eq!(paid.len(), 1);
    assert_eq!(paid[0].value, Amount::from_sat(50_000));
    assert!(!tx.input[0].witness.is_empty());
    let mut raw = Vec::new();
    tx.consensus_encode(&mut raw).unwrap();
    let left = 70_000 - 50_000 - wallet.balance().pending.to_sat();
    let vbytes = u64::try_from(tx.vsize()).unwrap();
    assert!((vbytes * 2 - 2..vbytes * 2 + 8).contains(&left), "{left} sat for {vbytes} vB");
    let again = wallet.fund(to, Amount::from_sat(10_000), rate, 2);
    assert!(again.is_err(), "the change is not confirmed");
}

#[test]
fn words_that_were_copied_wrong_are_told_apart() {
    let wrong = |from: &str, to: &str| Words::parse(&ABANDON.replacen(from, to, 1)).err().unwrap();
    assert!(matches!(wrong("about", "abuot"), SeedError::UnknownWord(12)));
    assert!(matches!(wrong("about", "zoo"), SeedError::Checksum));
    assert!(matches!(wrong(" about", ""), SeedError::WordCount(11)));
    assert!(matches!(wrong(ABANDON, ""), SeedError::WordCount(0)));
    assert!(Words::parse(&format!("\n {} \n", ABANDON.to_uppercase())).is_ok());
    assert_eq!(format!("{:?}", words()), "Words(..)");
}

#[test]
fn the_seed_file_is_private_and_stays_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (first, made) = seed::open(directory.path()).unwrap();
    assert!(made);
    let file = seed::path(directory.path());
    let permissions = std::fs::metadata(&file).unwrap().permissions();
    assert_eq!(permissions.mode() & 0o777, 0o600);
    let (second, made) = seed::open(directory.path()).unwrap();
    assert!(!made);
    assert_eq!(first.seed(), second.seed());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(seed::open(directory.path()), Err(SeedError::Exposed(_))));
}

#[test]
fn a_seed_file_that_holds_no_words_is_told_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let missing = seed::load(directory.path()).err().unwrap();
    assert!(matches!(missing, SeedError::Missing(_)), "{missing}");
    assert!(!seed::path(directory.path()).exists(), "only `open` makes one");
    std::fs::write(directory.path().join("seed.new"), "left by a crash").unwrap();
    seed::open(directory.path()).unwrap();
    let file = seed::path(directory.path());
    let long = [b'a'; 1_025];
    let typo = ABANDON.replace("about", "abuot");
    let wrong: [(&[u8], &str); 5] = [
        (b"", "these are 0"),
        (b"\xff\xfe", "no text"),
        (typo.as_bytes(), "word 12"),
        (&long[..1_024], "seed"),
        (&long, "longer"),
    ];
    for (content, told) in wrong {
        std::fs::write(&file, content).unwrap();
        let error = seed::open(directory.path()).err().unwrap().to_string();
        assert!(error.contains(told) && error.contains("/seed"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), content);
    }
    std::fs::write(&file, format!("{ABANDON}\n")).unwrap();
    assert_eq!(seed::load(directory.path()).unwrap().seed(), words().seed());
}
