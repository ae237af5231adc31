//! Figures beside each other, and whether they reach what they should.

use serde::{Serialize, Serializer};

use super::{Better, Group};

/// The figure in the middle, and those at both ends.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half are less.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of some figures; of none, all is zero.
    pub fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let at = |index: usize| figures.get(index).copied().unwrap_or_default();
        let median = if figures.len().is_multiple_of(2) {
            f64::midpoint(at(middle.saturating_sub(1)), at(middle))
        } else {
            at(middle)
        };
        Self { median, min: at(0), max: at(figures.len().saturating_sub(1)) }
    }
}

/// What a measure has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Ours divided by the reference.
    RatioAtMost(f64),
    /// The same.
    RatioAtLeast(f64),
    /// Ours, in the measure's unit.
    AtMost(f64),
    /// The same.
    AtLeast(f64),
}

impl Target {
    /// Whether it is met, and by what part of itself it is missed if not.
    fn judge(self, ours: f64, ratio: Option<f64>) -> Option<(bool, f64)> {
        Some(match self {
            Self::RatioAtMost(most) => (ratio? <= most, ratio? / most - 1.0),
            Self::RatioAtLeast(least) => (ratio? >= least, 1.0 - ratio? / least),
            Self::AtMost(most) => (ours <= most, ours / most - 1.0),
            Self::AtLeast(least) => (ours >= least, 1.0 - ours / least),
        })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RatioAtMost(most) | Self::AtMost(most) => write!(f, "<= {most}"),
            Self::RatioAtLeast(least) | Self::AtLeast(least) => write!(f, ">= {least}"),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One line of the report. Fields of what was not measured are null.
#[derive(Clone, Debug, Serialize)]
pub struct Measure {
    /// What was measured.
    pub name: String,
    /// Of `ours` and `reference`.
    pub unit: &'static str,
    /// Our median.
    pub ours: Option<f64>,
    /// Whom we are compared with.
    pub against: Option<String>,
    /// Their median.
    pub reference: Option<f64>,
    /// Median of the ratios ours / reference, each of one round.
    pub ratio: Option<f64>,
    /// What the ratio, or where there is no reference, what `ours` has to be.
    pub target: Option<Target>,
    /// Whether it is.
    pub met: Option<bool>,
    /// Rounds that all this comes from.
    pub rounds: usize,
    /// Our least and most.
    pub ours_spread: Option<[f64; 2]>,
    /// Theirs.
    pub reference_spread: Option<[f64; 2]>,
    /// The ratio's.
    pub ratio_spread: Option<[f64; 2]>,
    /// Why there is no reference, where there should be.
    pub missing: Option<String>,
    /// By how much a target is missed, and where the time goes.
    pub note: Option<String>,
}

impl Group {
    /// Sets one contender beside another.
    pub fn compare(&self, ours: &str, reference: &str, target: Option<Target>) -> Measure {
        let name = format!("{}: {ours}", self.title);
        let mut measure = self.measure(name, ours, target);
        measure.against = Some(reference.to_owned());
        let (Some(ours), Some(other)) = (self.find(ours), self.find(reference)) else {
            let why = self.why_missing(reference).or(self.why_missing(ours));
            measure.missing = Some(why.unwrap_or("it was not run").to_owned());
            return measure;
        };
        let theirs = other.spread();
        let ratios = ours.rounds.iter().zip(&other.rounds).map(|(ours, theirs)| ours / theirs);
        let ratio = Spread::of(ratios.collect());
        measure.reference = Some(theirs.median);
        measure.reference_spread = Some([theirs.min, theirs.max]);
        measure.ratio = Some(ratio.median);
        measure.ratio_spread = Some([ratio.min, ratio.max]);
        self.judge(&mut measure);
        measure
    }

    /// One contender's figure as it is.
    pub fn alone(&self, ours: &str, target: Option<Target>) -> Measure {
        let mut measure = self.measure(format!("{}: {ours}", self.title), ours, target);
        self.judge(&mut measure);
        measure
    }

    fn measure(&self, name: String, ours: &str, target: Option<Target>) -> Measure {
        let series = self.find(ours);
        let spread = series.map(super::Series::spread);
        Measure {
            name,
            unit: self.unit,
            ours: spread.map(|spread| spread.median),
            against: None,
            reference: None,
            ratio: None,
            target,
            met: None,
            rounds: series.map_or(0, |series| series.rounds.len()),
            ours_spread: spread.map(|spread| [spread.min, spread.max]),
            reference_spread: None,
            ratio_spread: None,
            missing: self.why_missing(ours).map(ToOwned::to_owned),
            note: None,
        }
    }

    fn judge(&self, measure: &mut Measure) {
        let (Some(target), Some(ours)) = (measure.target, measure.ours) else { return };
        let Some((met, missed)) = target.judge(ours, measure.ratio) else { return };
        measure.met = Some(met);
        if met {
            return;
        }
        // Of what must not be at all there is no part.
        let missed = if missed.is_finite() {
            format!("missed by {:.0} %", missed * 100.0)
        } else {
            "missed".to_owned()
        };
        let note = match (measure.reference, self.better) {
            // Rates hide what is added; the time a frame shows it.
            (Some(reference), Better::Higher) if self.unit == "frames/s" => {
                format!("{missed}: {:.0} ns a frame against {:.0}", 1e9 / ours, 1e9 / reference)
            }
            (Some(reference), Better::Lower) => {
                format!("{missed}: {:+.1} {}", ours - reference, self.unit)
            }
            _ => missed,
        };
        measure.note = Some(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Missing, Series};

    fn group(unit: &'static str, ours: &[f64], theirs: &[f64]) -> Group {
        let series =
            |name: &str, rounds: &[f64]| Series { name: name.to_owned(), rounds: rounds.to_vec() };
        Group {
            title: "cost".into(),
            unit,
            better: Better::Lower,
            series: vec![series("ours", ours), series("theirs", theirs)],
            missing: vec![Missing { name: "absent".into(), why: "not installed".into() }],
        }
    }

    #[test]
    fn a_ratio_is_taken_within_a_round() {
        // The machine was twice as slow in the second round, for both.
        let group = group("ns", &[30.0, 60.0, 30.0], &[20.0, 40.0, 20.0]);
        let measure = group.compare("ours", "theirs", Some(Target::RatioAtMost(1.5)));
        assert_eq!((measure.ratio, measure.ratio_spread), (Some(1.5), Some([1.5, 1.5])));
        assert_eq!((measure.met, measure.ours), (Some(true), Some(30.0)));
    }

    #[test]
    fn a_target_is_met_at_its_edge_and_missed_beyond() {
        let at =
            group("ns", &[16.0], &[10.0]).compare("ours", "theirs", Some(Target::RatioAtMost(1.6)));
        assert_eq!((at.met, at.note), (Some(true), None));
        let beyond = group("ns", &[20.0], &[10.0]);
        let beyond = beyond.compare("ours", "theirs", Some(Target::RatioAtMost(1.6)));
        assert_eq!(beyond.met, Some(false));
        assert_eq!(beyond.note.unwrap(), "missed by 25 %: +10.0 ns");
        let mut least = group("frames/s", &[2e6], &[4e6]);
        least.better = Better::Higher;
        let least = least.compare("ours", "theirs", Some(Target::RatioAtLeast(0.75)));
        assert_eq!(least.note.unwrap(), "missed by 33 %: 500 ns a frame against 250");
    }

    #[test]
    fn what_must_not_be_at_all_is_missed_by_no_part() {
        let none = Some(Target::AtMost(0.0));
        let one = group("frames", &[1.0], &[1.0]).alone("ours", none);
        assert_eq!((one.met, one.note.as_deref()), (Some(false), Some("missed")));
        let nothing = group("frames", &[0.0], &[1.0]).alone("ours", none);
        assert_eq!((nothing.met, nothing.note), (Some(true), None));
    }

    #[test]
    fn who_is_missing_is_named_and_nothing_is_met() {
        let measure =
            group("ns", &[1.0], &[1.0]).compare("ours", "absent", Some(Target::RatioAtMost(0.5)));
        assert_eq!((measure.met, measure.ratio), (None, None));
        assert_eq!(measure.missing.as_deref(), Some("not installed"));
    }

    #[test]
    fn the_report_has_the_fields_that_programs_read() {
        let measure = group("ns", &[16.0], &[10.0]).alone("ours", Some(Target::AtMost(50.0)));
        let json = serde_json::to_value(measure).unwrap();
        for field in ["name", "unit", "ours", "reference", "ratio", "target", "met"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["target"], "<= 50");
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_two_in_the_middle() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 4.0));
    }
}
