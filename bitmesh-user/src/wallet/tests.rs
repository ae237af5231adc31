//! Against BIP39's and BIP84's own vectors, and a chain made by hand; `tests/` has the real one.

use std::{os::unix::fs::PermissionsExt as _, path::Path};

use bitmesh_core::bitcoin::{
    self, CompactTarget, FeeRate, OutPoint, Transaction, TxIn, TxMerkleNode, TxOut,
    absolute::LockTime,
    block::{Header, Version},
    consensus::Encodable as _,
    hashes::Hash,
    transaction,
};

use bitmesh_core::{
    channel::{ChannelParams, PROTOCOL_VERSION},
    offer::OfferId,
    pricing::Schedule,
    units::Octets,
};

use super::*;

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
    let tx = Transaction {
        version: transaction::Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(bitcoin::Txid::from_byte_array([7; 32]), 0),
            ..TxIn::default()
        }],
        output: vec![TxOut { value: Amount::from_sat(value), script_pubkey: script }],
    };
    holding(wallet, tx)
}

/// A wallet with 70,000 sat in one confirmed output.
fn funded() -> Wallet {
    let mut wallet = wallet();
    let script = wallet.next_address().script_pubkey();
    let (block, height) = paying(&wallet, script, 70_000);
    wallet.connect_block(&block, height).unwrap();
    wallet
}

/// A block on the wallet's tip with one transaction.
fn holding(wallet: &Wallet, tx: Transaction) -> (Block, u32) {
    let tip = wallet.inner.latest_checkpoint();
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
    let merged = [Wallet::merge(&changes).unwrap()];
    let mut merged = Wallet::load(&words(), Network::Regtest, &merged).unwrap();
    assert_eq!(merged.balance(), wallet.balance());
    let next = wallet.next_address();
    assert_eq!(again.next_address(), next);
    assert_eq!(merged.next_address(), next);
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
fn a_payment_is_exactly_what_was_asked_or_says_what_is_missing() {
    let mut wallet = funded();
    let rate = FeeRate::from_sat_per_vb(2).unwrap();
    let to = ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::hash(b"channel"));
    let short = wallet.pay(&to, Sum::Sat(70_000), rate, 1).err();
    assert!(matches!(short, Some(WalletError::Insufficient { .. })), "{short:?}");
    let Payment { tx, .. } = wallet.pay(&to, Sum::Sat(50_000), rate, 1).unwrap();
    let paid: Vec<_> = tx.output.iter().filter(|output| output.script_pubkey == to).collect();
    assert_eq!(paid.len(), 1);
    assert_eq!(paid[0].value, Amount::from_sat(50_000));
    assert!(!tx.input[0].witness.is_empty());
    let mut raw = Vec::new();
    tx.consensus_encode(&mut raw).unwrap();
    let left = 70_000 - 50_000 - wallet.balance().pending.to_sat();
    let vbytes = u64::try_from(tx.vsize()).unwrap();
    assert!((vbytes * 2 - 2..vbytes * 2 + 8).contains(&left), "{left} sat for {vbytes} vB");
    let again = wallet.pay(&to, Sum::Sat(10_000), rate, 2);
    assert!(again.is_err(), "the change is not confirmed");
}

#[test]
fn p18_a_wallet_made_anew_finds_its_channels_by_what_their_fundings_carry() {
    let mut before = wallet();
    let script = before.next_address().script_pubkey();
    let first = paying(&before, script, 200_000);
    before.connect_block(&first.0, first.1).unwrap();
    let mut params = ChannelParams {
        version: PROTOCOL_VERSION,
        network: Network::Regtest,
        offer: OfferId::NONE,
        subscriber: before.channel_public_key(Role::Subscriber, 3).into(),
        provider: before.channel_public_key(Role::Provider, 0).into(),
        expiry_height: 2_000,
        capacity: Amount::from_sat(100_000),
        remainder_script: before.remainder_script(),
        schedule: Schedule::flat(1_000),
        confirmations: 1,
        unconfirmed_max: Amount::ZERO,
        tick_max: Octets(1 << 20),
    };
    let tx = before.fund(&params, 3, FeeRate::from_sat_per_vb(2).unwrap(), 1).unwrap();
    assert_eq!(tx.output.len(), 3, "channel, change, and what brings it back");
    assert_eq!(before.unconfirmed(), std::slice::from_ref(&tx));
    assert!(before.funds_channel(&tx), "so that only the channel broadcasts it again");
    let second = holding(&before, tx.clone());

    let mut again = wallet();
    for (block, height) in [first, second] {
        again.connect_block(&block, height).unwrap();
        let found = again.recover(&block.txdata);
        assert_eq!(found.len(), usize::from(height == 2));
        for Recovered { params: found, key_index } in found {
            assert_eq!((found.id(), found.capacity, key_index), (params.id(), params.capacity, 3));
            assert_eq!(found.validate(), Ok(()));
        }
    }
    // Copied by somebody else, into a transaction that spends nothing of this wallet's.
    let copied = Transaction { input: Vec::new(), ..tx };
    assert_eq!(again.recover(std::slice::from_ref(&copied)), []);
    let words = Words::generate().unwrap();
    let mut other = Wallet::create(&words, Network::Regtest, genesis()).unwrap();
    assert_eq!(other.recover(&[copied]), []);
    params.capacity = Amount::from_sat(1);
    let dust = before.fund(&params, 4, FeeRate::from_sat_per_vb(2).unwrap(), 1).err();
    assert!(
        matches!(dust, Some(WalletError::Dust(_) | WalletError::Insufficient { .. })),
        "{dust:?}"
    );
}

#[test]
fn p1_what_a_transaction_and_its_replacement_spend_is_free_again_when_they_are_given_up() {
    let mut wallet = funded();
    let rate = FeeRate::from_sat_per_vb(2).unwrap();
    let to = ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::hash(b"channel"));
    let first = wallet.pay(&to, Sum::Sat(50_000), rate, 1).unwrap().tx;
    let second = wallet.bump(first.compute_txid(), rate, Amount::from_sat(5_000), 2).unwrap();
    assert_eq!(wallet.unconfirmed(), std::slice::from_ref(&second));
    let mut changes: Vec<String> = wallet.take_changes().unwrap().into_iter().collect();
    wallet.give_up([&first, &second].into_iter(), 3);
    assert_eq!(wallet.unconfirmed(), []);
    assert_eq!(wallet.balance().confirmed, Amount::from_sat(70_000));
    changes.extend(wallet.take_changes().unwrap());
    let mut again = Wallet::load(&words(), Network::Regtest, &changes).unwrap();
    assert_eq!(again.balance(), wallet.balance());
    assert!(again.pay(&to, Sum::Sat(60_000), rate, 4).is_ok());
    let (block, height) = holding(&wallet, first);
    wallet.connect_block(&block, height).unwrap();
    assert!(wallet.balance().confirmed < Amount::from_sat(20_000), "it confirmed after all");
}

#[test]
fn a_large_coin_is_spent_rather_than_many_small_ones() {
    let mut wallet = wallet();
    let script = wallet.next_address().script_pubkey();
    let (mut block, height) = paying(&wallet, script.clone(), 100_000);
    let small = TxOut { value: Amount::from_sat(1_000), script_pubkey: script };
    block.txdata[0].output.extend(vec![small; 100]);
    wallet.connect_block(&block, height).unwrap();
    let rate = FeeRate::from_sat_per_vb(1).unwrap();
    let to = ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::hash(b"channel"));
    for sum in [10_000, 50_000, 90_000] {
        let preview = wallet.preview(&to, Sum::Sat(sum), rate).unwrap();
        assert_eq!(preview.tx.input.len(), 1);
    }
}

#[test]
fn an_address_of_another_chain_is_refused_with_the_reason() {
    let wallet = wallet();
    let own = "bcrt1qcr8te4kr609gcawutmrza0j4xv80jy8zeqchgx";
    assert!(wallet.payee(own).unwrap().is_p2wpkh());
    let told = |address: &str| wallet.payee(address).unwrap_err().to_string();
    let main = told("bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu");
    assert!(main.contains("on bitcoin") && main.contains("is on regtest"), "{main}");
    let test = told("tb1qcr8te4kr609gcawutmrza0j4xv80jy8z0rrddd");
    assert!(test.contains("no address") || test.contains("on testnet"), "{test}");
    assert!(told("").contains("no address"));
    assert!(told(&own.replace("gx", "gy")).contains("no address"));
}

#[test]
fn a_preview_is_what_is_paid_then_and_leaves_nothing_behind() {
    let mut wallet = funded();
    let rate = FeeRate::from_sat_per_vb(2).unwrap();
    let to = ScriptBuf::new_p2wsh(&bitcoin::WScriptHash::hash(b"somebody"));
    for sum in [Sum::Sat(50_000), Sum::All] {
        let preview = wallet.preview(&to, sum, rate).unwrap();
        // The order of the outputs is left to chance.
        let figures = |preview: &Payment| {
            let mut outputs = preview.tx.output.clone();
            outputs.sort();
            (preview.amount, preview.fee, preview.change, outputs)
        };
        let again = wallet.preview(&to, sum, rate).unwrap();
        assert_eq!(figures(&again), figures(&preview), "again");
        assert_eq!(wallet.balance().confirmed, Amount::from_sat(70_000));
        let total = preview.amount + preview.fee + preview.change;
        assert_eq!(total, Amount::from_sat(70_000), "{preview:?}");
    }
    let preview = wallet.preview(&to, Sum::Sat(50_000), rate).unwrap();
    let paid = wallet.pay(&to, Sum::Sat(50_000), rate, 1).unwrap();
    assert_eq!((paid.fee, paid.change), (preview.fee, preview.change));
    let vbytes = u64::try_from(paid.tx.vsize()).unwrap();
    assert!((vbytes..=vbytes + 1).contains(&wallet.signed_vbytes(&preview.tx)));
    let dust = wallet.preview(&to, Sum::Sat(329), rate).unwrap_err();
    assert!(matches!(dust, WalletError::Dust(_)), "{dust}");
    let [past, _] = wallet.history().try_into().unwrap();
    assert_eq!(
        (past.height, past.sent, past.fee),
        (None, Amount::from_sat(70_000), Some(paid.fee))
    );
    assert_eq!(wallet.unconfirmed(), [paid.tx]);
}

const PASSPHRASE: &str = "four words by chance";

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.into())
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_seed_with_a_passphrase_is_opened_by_that_alone() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let missing = Sealed::read(directory).err().unwrap();
    assert!(matches!(missing, SeedError::Missing(_)), "{missing}");
    let short = Seed::new(words(), Some(passphrase("short"))).err().unwrap();
    assert!(matches!(short, SeedError::Short(5)), "{short}");

    let mut seed = Seed::new(words(), Some(passphrase(PASSPHRASE))).unwrap();
    assert_eq!(seed.birthday(), None);
    assert!(!seed.keep(directory, Network::Regtest, 9).unwrap());
    assert_eq!(seed.birthday(), Some(9));
    assert_eq!(mode(&seed::path(directory)), 0o600);
    assert!(!directory.join("seed.key").exists());

    let sealed = Sealed::read(directory).unwrap();
    assert_eq!(sealed.fingerprint().to_string(), "73c5da0a");
    let locked = sealed.open(None).err().unwrap();
    assert!(matches!(locked, SeedError::Locked(_)), "{locked}");
    let wrong = sealed.open(Some(&passphrase("four words by chancf"))).err().unwrap();
    let source = match wrong {
        SeedError::Vault { source, .. } => source,
        other => panic!("{other}"),
    };
    assert!(matches!(source, VaultError::WrongPassphrase), "{source}");
    let opened = sealed.open(Some(&passphrase(PASSPHRASE))).unwrap();
    assert_eq!(opened.words().seed(), words().seed());
    assert_eq!(opened.birthday(), Some(9));
    let other = sealed.on(Network::Signet).err().unwrap();
    assert!(matches!(other, SeedError::WrongNetwork { .. }), "{other}");
}

#[test]
fn a_seed_without_a_passphrase_has_its_key_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut seed = Seed::new(words(), None).unwrap();
    assert!(seed.keep(directory, Network::Regtest, 9).unwrap());
    assert!(!seed.keep(directory, Network::Regtest, 9).unwrap(), "it is written once");
    let key = directory.join("seed.key");
    assert_eq!((mode(&seed::path(directory)), mode(&key)), (0o600, 0o600));
    let sealed = Sealed::read(directory).unwrap();
    assert_eq!(sealed.open(None).unwrap().words().seed(), words().seed());

    let other =
        Seed::new(Words::generate().unwrap(), None).unwrap().keep(directory, Network::Regtest, 1);
    assert!(matches!(other, Err(SeedError::Present(_))), "{other:?}");
    let text = std::fs::read(&key).unwrap();
    std::fs::write(&key, "00".repeat(32)).unwrap();
    assert!(sealed.open(None).err().unwrap().to_string().contains("seed.key"));
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(sealed.open(None).err(), Some(SeedError::Missing(path)) if path == key));
    std::fs::write(&key, text).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(sealed.open(None).err(), Some(SeedError::Exposed(path)) if path == key));
}

#[test]
fn a_passphrase_is_set_changed_and_taken_off() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    Seed::new(words(), None).unwrap().keep(directory, Network::Regtest, 9).unwrap();
    let change = |old: Option<&str>, new: Option<&str>| {
        let sealed = Sealed::read(directory).unwrap();
        let seed = sealed.open(old.map(passphrase).as_ref())?;
        sealed.change(&seed, new.map(passphrase).as_ref())
    };
    change(None, Some(PASSPHRASE)).unwrap();
    assert!(!directory.join("seed.key").exists());
    assert!(matches!(change(Some(PASSPHRASE), Some("short")), Err(SeedError::Short(_))));
    change(Some(PASSPHRASE), Some("another passphrase")).unwrap();
    assert!(change(Some(PASSPHRASE), None).is_err(), "the old one");
    change(Some("another passphrase"), None).unwrap();
    let opened = Sealed::read(directory).unwrap().open(None).unwrap();
    assert_eq!(opened.words().seed(), words().seed());
    assert_eq!(opened.birthday(), Some(9));
}

#[test]
fn a_seed_file_that_holds_something_else_is_told_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("seed.new"), "left by a crash").unwrap();
    let mut seed = Seed::new(words(), None).unwrap();
    seed.keep(directory.path(), Network::Regtest, 0).unwrap();
    let file = seed::path(directory.path());
    let intact = std::fs::read(&file).unwrap();
    let long = [b'a'; 4_097];
    let wrong: [(&[u8], &str); 6] = [
        (b"", "no seed file"),
        (b"\xff\xfe", "no seed file"),
        (ABANDON.as_bytes(), "no seed file"),
        (&intact[..intact.len() / 2], "no seed file"),
        (&long[..4_096], "no seed file"),
        (&long, "longer"),
    ];
    for (content, told) in wrong {
        std::fs::write(&file, content).unwrap();
        let error = Sealed::read(directory.path()).err().unwrap().to_string();
        assert!(error.contains(told) && error.contains("/seed"), "{error}");
        assert!(!error.contains("abandon"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), content);
    }
    std::fs::write(&file, &intact).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Sealed::read(directory.path()), Err(SeedError::Exposed(_))));
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/etc/shadow", &file).unwrap();
    assert!(matches!(Sealed::read(directory.path()), Err(SeedError::Io { .. })));
}
