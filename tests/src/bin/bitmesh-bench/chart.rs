//! The figures as bars, in an SVG that needs no fonts or scripts of its own.

use std::fmt::Write as _;

use bitmesh_user::bench::{Better, Group, Measure, Series, figure};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 32.0;
/// Where bars begin; names are left of it.
const BARS: f64 = 268.0;
/// The longest bar; its figure is right of it.
const BAR_MAX: f64 = 520.0;
/// Least that a scale ends at, where nothing was found of what is counted.
const SCALE_MIN: f64 = 1e-9;
const ROW: f64 = 26.0;
const BAR: f64 = 16.0;
const HEAD: f64 = 78.0;
const TITLE: f64 = 30.0;
const NOTE: f64 = 20.0;
const GAP: f64 = 26.0;
/// Letters of a note that fit beside each other.
const NOTE_LETTERS: usize = 120;

const STYLE: &str = "\
    text { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; \
    font-size: 13px; fill: #27303f } \
    .title { font-size: 20px; font-weight: 600 } .group { font-size: 14px; font-weight: 600 } \
    .soft { fill: #6b7687; font-size: 12px } .end { text-anchor: end } \
    .ours { fill: #f08c1d } .other { fill: #b4bdca } .strong { font-weight: 600 } \
    .met { fill: #1c7c4a; font-size: 12px } .missed { fill: #b3362b; font-size: 12px } \
    .whisker { stroke: #27303f; stroke-width: 1; opacity: 0.55 } .line { stroke: #e4e8ee }";

/// All groups below each other, each on a scale of its own, with what has to be reached.
pub fn draw(title: &str, groups: &[Group], measures: &[Measure], machine: &str) -> String {
    let mut body = String::new();
    let mut y = HEAD;
    for group in groups {
        y = panel(&mut body, group, measures, y) + GAP;
    }
    let height = y;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"10\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, "title", MARGIN, 38.0, title);
    let under = format!("medians, with the least and the most of all rounds; {machine}");
    text(&mut svg, "soft", MARGIN, 58.0, &under);
    svg + &body + "</svg>\n"
}

/// One group from `top` down. Returns where it ends.
fn panel(out: &mut String, group: &Group, measures: &[Measure], top: f64) -> f64 {
    let (end, line) = (WIDTH - MARGIN, top + 2.0);
    write(
        out,
        format_args!(
            "<line class=\"line\" x1=\"{MARGIN}\" x2=\"{end}\" y1=\"{line}\" y2=\"{line}\"/>\n"
        ),
    );
    text(out, "group", MARGIN, top + 24.0, &group.title);
    let aim = match group.better {
        Better::Lower => "less is better",
        Better::Higher => "more is better",
    };
    text(out, "soft end", end, top + 24.0, aim);
    let mut y = top + TITLE + 6.0;
    let most = group.series.iter().map(|s| s.spread().max).fold(SCALE_MIN, f64::max);
    for series in &group.series {
        let ours = measures.iter().any(|m| m.name == format!("{}: {}", group.title, series.name));
        bar(out, series, group.unit, BAR_MAX / most, ours, y);
        y += ROW;
    }
    for missing in &group.missing {
        text(out, "soft end", BARS - 12.0, y + 13.0, &missing.name);
        text(out, "soft", BARS, y + 13.0, &shortened(&format!("missing: {}", missing.why), 80));
        y += ROW;
    }
    let of_group = format!("{}: ", group.title);
    for measure in measures.iter().filter(|m| m.name.starts_with(&of_group)) {
        let (Some(target), Some(met)) = (measure.target, measure.met) else { continue };
        let name = measure.name.strip_prefix(&of_group).unwrap_or(&measure.name);
        let said = match (&measure.against, measure.ratio) {
            (Some(against), Some(ratio)) => format!("{name} / {against}: {ratio:.2}"),
            _ => format!("{name}: {}", figure(measure.ours.unwrap_or_default(), measure.unit)),
        };
        let (class, word) = if met { ("met", "met") } else { ("missed", "missed") };
        let line = shortened(&format!("{said}, to be {target}: {word}"), NOTE_LETTERS);
        text(out, class, BARS, y + 12.0, &line);
        y += NOTE;
    }
    y
}

fn bar(out: &mut String, series: &Series, unit: &str, scale: f64, ours: bool, y: f64) {
    let spread = series.spread();
    let (width, class) = (spread.median * scale, if ours { "ours" } else { "other" });
    let (middle, low, high) = (y + BAR / 2.0, BARS + spread.min * scale, BARS + spread.max * scale);
    let name = if ours { "end strong" } else { "end" };
    text(out, name, BARS - 12.0, y + 13.0, &series.name);
    write(
        out,
        format_args!(
            "<rect class=\"{class}\" x=\"{BARS}\" y=\"{y}\" width=\"{width:.1}\" height=\"{BAR}\" \
         rx=\"3\"/>\n<path class=\"whisker\" d=\"M{low:.1} {middle}H{high:.1}M{low:.1} \
         {from}v6M{high:.1} {from}v6\"/>\n",
            from = middle - 3.0,
        ),
    );
    let label = figure(spread.median, unit);
    text(
        out,
        name.trim_start_matches("end").trim(),
        high.max(BARS + width) + 10.0,
        y + 13.0,
        &label,
    );
}

fn text(out: &mut String, class: &str, x: f64, y: f64, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    write(out, format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>\n"));
}

fn write(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A String takes whatever it is given.
    let _ = out.write_fmt(text);
}

fn shortened(text: &str, letters: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= letters {
        return line.to_owned();
    }
    line.chars().take(letters.saturating_sub(1)).chain(['…']).collect()
}
