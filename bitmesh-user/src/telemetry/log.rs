//! Logs, on standard error.

use std::{env, io::IsTerminal as _, os::unix::fs::MetadataExt as _, sync::OnceLock};

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Layer as _, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people; without time and colours where the journal takes it
    #[default]
    Text,
    /// One JSON object a line, for programs
    Json,
}

/// What is told unless somebody wants more or less.
const DEFAULT_FILTER: &str = "info";

type SetFilter = Box<dyn Fn(EnvFilter) -> Result<()> + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Starts the log of a daemon; to be called once.
pub fn start_log(format: LogFormat, filter: Option<&str>) -> Result<()> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let journal = is_journal();
    let lines = fmt::layer()
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(!journal && std::io::stderr().is_terminal());
    let lines = match (format, journal) {
        (LogFormat::Json, _) => lines.json().flatten_event(true).boxed(),
        // The journal has the time.
        (LogFormat::Text, true) => lines.without_time().boxed(),
        (LogFormat::Text, false) => lines.boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    let set: SetFilter = Box::new(move |filter| Ok(handle.reload(filter)?));
    SET_FILTER.set(set).map_err(|_| anyhow!("the log runs already"))
}

/// Tells more or less from now on.
pub fn set_filter(filter: Option<&str>) -> Result<()> {
    let filter = parse(filter)?;
    SET_FILTER.get().map_or(Ok(()), |set| set(filter))
}

/// Whether a filter is one.
pub fn check_filter(filter: Option<&str>) -> Result<()> {
    parse(filter).map(drop)
}

fn parse(filter: Option<&str>) -> Result<EnvFilter> {
    let text = filter.unwrap_or(DEFAULT_FILTER);
    EnvFilter::try_new(text).with_context(|| {
        format!(
            "--log {text}: take error, warn, info, debug or trace, or `info,bitmesh_user=debug`"
        )
    })
}

/// Whether standard error is the journal's (`systemd.exec(5)`, `JOURNAL_STREAM`).
fn is_journal() -> bool {
    let Ok(named) = env::var("JOURNAL_STREAM") else { return false };
    let Ok(own) = std::fs::metadata("/proc/self/fd/2") else { return false };
    named == format!("{}:{}", own.dev(), own.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_nobody_understands_is_refused_with_what_to_type() {
        assert!(parse(None).is_ok() && parse(Some("warn,bitmesh_user=debug")).is_ok());
        let error = parse(Some("a=b=c")).err().unwrap();
        assert!(format!("{error:#}").contains("--log a=b=c"), "{error:#}");
    }
}
