//! `bitmesh wallet send`.

use std::{io, str::FromStr};

use anyhow::{Result, bail};
use bitcoin::FeeRate;
use bitmesh_core::bitcoin;
use clap::{Args, ValueEnum};

use super::{
    super::print,
    access::{Access, Place, is_terminal},
    show,
};
use crate::{
    api::{FEE_RATE_MAX_SAT_PER_VB, FeeRateReport, SendOrder, SendReport, WalletAsk, value},
    wallet::Sum,
};

#[derive(Args, Clone, Debug)]
pub(super) struct SendArgs {
    /// To whom
    #[arg(value_name = "ADDRESS")]
    address: String,
    /// How many satoshi they get, or `all` that is confirmed
    #[arg(value_name = "SAT|all")]
    amount: AmountArg,
    /// How soon it should be in a block
    #[arg(long, value_enum, default_value_t, conflicts_with = "fee_rate")]
    fee: FeeArg,
    /// What to pay miners, in satoshi per vbyte
    #[arg(long, value_name = "SAT_PER_VB",
        value_parser = clap::value_parser!(u64).range(1..=FEE_RATE_MAX_SAT_PER_VB))]
    fee_rate: Option<u64>,
    /// Don't ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, Debug)]
struct AmountArg(Sum);

impl FromStr for AmountArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self(Sum::All));
        }
        let sat =
            text.parse().map_err(|_| "a number of satoshi without commas or dots, or `all`")?;
        Ok(Self(Sum::Sat(sat)))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum FeeArg {
    /// Within a day
    Slow,
    /// Within an hour
    #[default]
    Normal,
    /// In the next block or two
    Fast,
}

impl FeeArg {
    fn blocks(self) -> u16 {
        match self {
            Self::Slow => 144,
            Self::Normal => 6,
            Self::Fast => 2,
        }
    }
}

impl SendArgs {
    pub(super) async fn run(self) -> Result<()> {
        let mut access = Access::open(&self.place).await?;
        let done = self.send(&mut access).await;
        access.close().await?;
        let Some(report) = done? else { return Ok(()) };
        print(self.place.json, &value(&report), &report, show::sent)
    }

    async fn send(&self, access: &mut Access) -> Result<Option<SendReport>> {
        let rate = match self.fee_rate.map(FeeRate::from_sat_per_vb) {
            Some(Some(rate)) => rate,
            Some(None) => bail!("--fee-rate is too high"),
            None => {
                let blocks = self.fee.blocks();
                let told: FeeRateReport = access.of_wallet(WalletAsk::FeeRate { blocks }).await?;
                told.fee_sat_per_kwu
            }
        };
        let order = SendOrder {
            address: self.address.clone(),
            sum: self.amount.0,
            fee_sat_per_kwu: rate,
            preview: true,
        };
        let preview: SendReport = access.of_wallet(WalletAsk::Send(order.clone())).await?;
        if !self.yes {
            if !is_terminal() {
                bail!("nothing was sent: --yes says that it may be, without a terminal to ask on");
            }
            eprintln!("{}", show::preview(&preview));
            eprint!("Send it? [y/N] ");
            let mut answer = String::new();
            io::stdin().read_line(&mut answer)?;
            if !matches!(answer.trim(), "y" | "Y" | "yes") {
                eprintln!("Nothing was sent.");
                return Ok(None);
            }
        }
        let order = SendOrder { preview: false, ..order };
        Ok(Some(access.of_wallet(WalletAsk::Send(order)).await?))
    }
}
