//! What the wallet's commands print.

use std::{fmt::Write as _, io::IsTerminal as _};

use anyhow::{Context as _, Result};
use bip21::Uri;
use bitcoin::{Address, Amount, address::NetworkUnchecked};
use bitmesh_core::bitcoin;
use fast_qr::QRBuilder;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{
    super::show::{facts, sat, short},
    make::Made,
};
use crate::{
    api::{PastKind, PastReport, SendReport, SendState},
    bench::grouped,
    runloop::status::WalletStatus,
    store::StoreRole,
    terminal::table,
    wallet::Words,
};

pub(super) fn summary(wallet: &WalletStatus) -> String {
    facts(&[
        ("balance", sat(wallet.confirmed_sat)),
        ("pending", sat(wallet.pending_sat)),
        ("in channels", sat(wallet.in_channels_sat)),
        ("receive at", wallet.address.clone()),
        ("seed", format!("fingerprint {}", wallet.fingerprint)),
    ])
}

pub(super) fn balance(wallet: &WalletStatus) -> String {
    let total = wallet.confirmed_sat + wallet.pending_sat + wallet.in_channels_sat;
    facts(&[
        ("confirmed", format!("{}  in blocks; can be sent", sat(wallet.confirmed_sat))),
        (
            "pending",
            format!("{}  on its way; can be sent once it is in a block", sat(wallet.pending_sat)),
        ),
        (
            "in channels",
            format!(
                "{}  comes back when a channel is closed, or is claimed then; less the fee of that",
                sat(wallet.in_channels_sat)
            ),
        ),
        ("together", sat(total)),
    ])
}

/// An address with what is asked for (BIP21).
#[derive(Serialize)]
pub(super) struct Request {
    address: String,
    uri: String,
}

impl Request {
    pub(super) fn new(address: &str, amount: Option<u64>, label: Option<String>) -> Result<Self> {
        let parsed: Address<NetworkUnchecked> = address.parse().context("the wallet's address")?;
        let mut uri = Uri::new(parsed.assume_checked());
        uri.amount = amount.map(Amount::from_sat);
        uri.label = label.map(Into::into);
        Ok(Self { address: address.to_owned(), uri: uri.to_string() })
    }
}

pub(super) fn request(request: &Request) -> String {
    let code = std::io::stdout().is_terminal().then(|| QRBuilder::new(request.uri.clone()).build());
    match code {
        Some(Ok(code)) => format!("{}\n{}", code.to_str(), request.uri),
        _ => request.uri.clone(),
    }
}

pub(super) fn history(past: &[PastReport]) -> String {
    if past.is_empty() {
        return "nothing has come or gone yet; `bitmesh wallet address` shows where to be paid"
            .into();
    }
    let mut rows = table(&["when", "block", "what", "amount", "fee", "channel", "transaction"]);
    for past in past {
        rows.add_row([
            past.time.map_or_else(|| "-".into(), date),
            past.height.map_or_else(|| "waiting".into(), |height| grouped(height.into())),
            kind(past.kind).into(),
            signed(past.amount_sat),
            past.fee_sat.map_or_else(|| "-".into(), sat),
            past.channel.map_or_else(|| "-".into(), short),
            past.txid.to_string(),
        ]);
    }
    rows.to_string()
}

fn kind(kind: PastKind) -> &'static str {
    match kind {
        PastKind::Received => "received",
        PastKind::Sent => "sent",
        PastKind::Moved => "moved within",
        PastKind::Funding => "into a channel",
        PastKind::Claim => "claimed",
        PastKind::Remainder => "rest of a channel",
        PastKind::Refund => "refunded",
    }
}

fn signed(amount: i64) -> String {
    let sign = if amount < 0 { "-" } else { "+" };
    format!("{sign}{}", sat(amount.unsigned_abs()))
}

/// Day and minute, in UTC.
fn date(seconds: u64) -> String {
    let minutes = seconds / 60;
    let (day, hour, minute) = (minutes / 1_440, minutes / 60 % 24, minutes % 60);
    // Years that start in March, in eras of 400 years: the leap day is each one's last.
    let day = day + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    format!("{:04}-{month:02}-{day:02} {hour:02}:{minute:02}", era * 400 + year)
}

pub(super) fn preview(report: &SendReport) -> String {
    facts(&[
        ("to", report.address.clone()),
        ("they get", sat(report.amount_sat)),
        ("fee", fee(report)),
        ("back to you", sat(report.change_sat)),
    ])
}

pub(super) fn sent(report: &SendReport) -> String {
    let txid = report.txid.map(|txid| txid.to_string()).unwrap_or_default();
    let state = match &report.state {
        SendState::Preview => "nothing was sent".into(),
        SendState::Sent => "sent; in a block soon: `bitmesh wallet history`".into(),
        SendState::Waiting { reason } => format!(
            "signed, and not taken by the network yet ({reason}): a daemon that runs goes on trying, and so does \
             the next `bitmesh wallet`"
        ),
    };
    facts(&[
        ("to", report.address.clone()),
        ("amount", sat(report.amount_sat)),
        ("fee", fee(report)),
        ("transaction", txid),
        ("state", state),
    ])
}

fn fee(report: &SendReport) -> String {
    let tenths = (report.fee_sat * 10).checked_div(report.vbytes).unwrap_or(0);
    format!("{} ({}.{} sat/vB)", sat(report.fee_sat), tenths / 10, tenths % 10)
}

/// In columns, as one writes them down.
pub(super) fn words(words: &Words, birthday: u32) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(1_024));
    text.push_str("The words of this wallet, in order. Whoever has them has the money.\n\n");
    for (number, word) in (1..).zip(words.iter()) {
        let _ = write!(text, "{number:4}. {word:<10}");
        if number % 4 == 0 {
            text.push('\n');
        }
    }
    let _ =
        write!(text, "\nBirthday: block {birthday} (bringing it back looks at nothing before it)");
    text
}

pub(super) fn made(made: &Made) -> String {
    let directory = made.directory.display();
    let mut text = facts(&[
        ("wallet", format!("{directory}, for `bitmesh {}`", command(made.role))),
        ("network", made.network.to_string()),
        ("fingerprint", made.fingerprint.clone()),
        ("birthday", format!("block {}", made.birthday)),
        ("sealed with", lock(made.passphrase).into()),
    ]);
    if let Some(file) = &made.words_file {
        let _ = write!(
            text,
            "\n\nThe words are in {}: take it to a safe place off this machine, and delete it here.",
            file.display()
        );
    }
    text + "\n\nNext: `bitmesh wallet address` shows where to be paid."
}

fn command(role: StoreRole) -> &'static str {
    match role {
        StoreRole::Provider => "sell",
        StoreRole::Subscriber => "buy",
    }
}

fn lock(passphrase: bool) -> &'static str {
    if passphrase {
        "your passphrase"
    } else {
        "a key in seed.key beside it: protects copies of the seed file alone"
    }
}

pub(super) fn sealed(made: &Made) -> String {
    let start = if made.passphrase {
        "the next start asks for it, or takes it from --passphrase-file or a credential"
    } else {
        "starts ask for nothing"
    };
    format!(
        "The words of {} are sealed with {}; {start}. Copies of the seed file from before are not changed.",
        made.fingerprint,
        lock(made.passphrase)
    )
}

pub(super) fn restored(wallet: &WalletStatus, role: StoreRole) -> String {
    let note = match role {
        StoreRole::Subscriber => {
            "Money in channels comes back by itself after their end, whenever `bitmesh buy` runs or a \
             `bitmesh wallet` command looks at the chain. `bitmesh channels export-refund` shows them."
        }
        StoreRole::Provider => {
            "What was paid on channels that were open is not in the words: it is claimed with the data \
             directory of before alone. Claims that are made find their way here."
        }
    };
    format!("{}\n\n{note}", balance(wallet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, told) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (951_868_800, "2000-03-01 00:00"),
            (1_231_006_505, "2009-01-03 18:15"),
            (4_107_542_400, "2100-03-01 00:00"),
        ] {
            assert_eq!(date(seconds), told);
        }
    }

    #[test]
    fn words_are_numbered_and_their_birthday_stands_below() {
        let twelve = "abandon ".repeat(11) + "about";
        let text = words(&Words::parse(&twelve).unwrap(), 900_123);
        assert!(text.contains("  12. about") && text.contains("block 900123"), "{}", *text);
    }

    #[test]
    fn a_request_for_money_is_one_of_bip21() {
        let address = "bcrt1qcr8te4kr609gcawutmrza0j4xv80jy8zeqchgx";
        let plain = Request::new(address, None, None).unwrap();
        assert_eq!(plain.uri, format!("bitcoin:{address}"));
        let full = Request::new(address, Some(50_000), Some("for internet".into())).unwrap();
        assert!(full.uri.contains("amount=0.0005"), "{}", full.uri);
        assert!(full.uri.contains("label=for%20internet"), "{}", full.uri);
    }
}
