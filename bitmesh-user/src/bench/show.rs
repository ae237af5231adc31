//! Measures as a table for a terminal.

use comfy_table::{Cell, CellAlignment, Color};

use super::Measure;
use crate::terminal;

/// Columns: what, ours, reference, ratio with its spread, target, whether it is met.
pub fn table(measures: &[Measure]) -> String {
    let mut table = terminal::table(&[
        "measure",
        "ours",
        "against",
        "theirs",
        "ratio (min..max)",
        "target",
        "",
    ]);
    for column in [1, 3, 4, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for measure in measures {
        let spread = measure
            .ratio_spread
            .map_or(String::new(), |[min, max]| format!(" ({min:.2}..{max:.2})"));
        let ratio = measure.ratio.map_or(String::new(), |ratio| format!("{ratio:.2}{spread}"));
        let theirs = match (&measure.missing, measure.reference) {
            (Some(_), _) => "MISSING".to_owned(),
            (None, Some(reference)) => figure(reference, measure.unit),
            (None, None) => String::new(),
        };
        table.add_row([
            Cell::new(&measure.name),
            Cell::new(measure.ours.map_or("-".to_owned(), |ours| figure(ours, measure.unit))),
            Cell::new(measure.against.as_deref().unwrap_or_default()),
            Cell::new(theirs),
            Cell::new(ratio),
            Cell::new(measure.target.map_or(String::new(), |target| target.to_string())),
            verdict(measure),
        ]);
    }
    let notes: Vec<_> = measures.iter().filter_map(footnote).collect();
    if notes.is_empty() { table.to_string() } else { format!("{table}\n\n{}", notes.join("\n")) }
}

fn footnote(measure: &Measure) -> Option<String> {
    let said = measure.missing.as_ref().map(|why| format!("missing: {why}"));
    let said = said.or_else(|| measure.note.clone())?;
    let against = measure.against.as_ref().map_or(String::new(), |name| format!(" / {name}"));
    Some(format!("{}{against}: {said}", measure.name))
}

fn verdict(measure: &Measure) -> Cell {
    match (measure.met, measure.target) {
        (Some(true), _) => Cell::new("met").fg(Color::Green),
        (Some(false), _) => Cell::new("MISSED").fg(Color::Red),
        (None, Some(_)) => Cell::new("not measured").fg(Color::Yellow),
        (None, None) => Cell::new(""),
    }
}

/// A figure with its unit, as short as it stays exact to a hundredth or so.
pub fn figure(value: f64, unit: &str) -> String {
    let (value, unit) = match unit {
        "frames/s" if value >= 1e6 => (value / 1e6, "Mpps"),
        "frames/s" => (value / 1e3, "kpps"),
        "bit/s" => (value / 1e9, "Gbit/s"),
        "ns/frame" => (value, "ns"),
        unit => (value, unit),
    };
    match value {
        value if value >= 100.0 => format!("{value:.0} {unit}"),
        value if value >= 10.0 => format!("{value:.1} {unit}"),
        value => format!("{value:.2} {unit}"),
    }
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        for (value, unit, text) in [
            (2_345_678.0, "frames/s", "2.35 Mpps"),
            (98_765.0, "frames/s", "98.8 kpps"),
            (58.26, "ns/frame", "58.3 ns"),
            (1.3e10, "bit/s", "13.0 Gbit/s"),
            (345.0, "ms", "345 ms"),
        ] {
            assert_eq!(figure(value, unit), text);
        }
    }

    #[test]
    fn numbers_are_grouped_for_people() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
