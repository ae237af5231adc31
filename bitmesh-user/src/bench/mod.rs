//! What metering costs on this machine, beside doing nothing and beside what others do.
//!
//! It runs contenders in turn, round by round, so that a slow moment of the machine meets all of
//! them, and compares only within a round. It measures through [`crate::dataplane::Workbench`] and
//! changes nothing on the machine; what needs a lab is in `tests/src/bin/bitmesh-bench`.

mod local;
mod measure;
mod payments;
mod show;
mod terms;

use anyhow::{Context as _, Result};

pub use self::{
    local::{STATION, Scale, events, frames, local, scans, tcp4, top_ups},
    measure::{Measure, Spread, Target},
    payments::payments,
    show::{figure, grouped, table},
    terms::terms,
};

/// Something that can be measured again and again.
pub struct Contender<'a> {
    name: String,
    run: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Contender<'a> {
    /// One whose `run` gives one figure, in the unit of its group.
    pub fn new(name: impl Into<String>, run: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// A contender's figures, one a round.
#[derive(Clone, Debug)]
pub struct Series {
    /// Whose.
    pub name: String,
    /// In the unit of the group.
    pub rounds: Vec<f64>,
}

impl Series {
    /// The figure in the middle, and those at both ends.
    pub fn spread(&self) -> Spread {
        Spread::of(self.rounds.clone())
    }
}

/// One that could not take part.
#[derive(Clone, Debug)]
pub struct Missing {
    /// Who.
    pub name: String,
    /// Why not, and what to do about it.
    pub why: String,
}

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Times.
    Lower,
    /// Rates.
    Higher,
}

/// What was measured in the same rounds.
#[derive(Clone, Debug)]
pub struct Group {
    /// What people read.
    pub title: String,
    /// Unit of all figures.
    pub unit: &'static str,
    /// What to aim at.
    pub better: Better,
    /// Who took part.
    pub series: Vec<Series>,
    /// Who should have.
    pub missing: Vec<Missing>,
}

impl Group {
    /// Runs `contenders` in turn for some rounds; every second round goes backwards, so that nobody
    /// always follows the same one. `before` is told who is next.
    pub fn race(
        title: impl Into<String>,
        (unit, better): (&'static str, Better),
        rounds: usize,
        mut contenders: Vec<Contender<'_>>,
        before: &dyn Fn(&str),
    ) -> Result<Self> {
        let mut series: Vec<_> = contenders
            .iter()
            .map(|contender| Series { name: contender.name.clone(), rounds: Vec::new() })
            .collect();
        for round in 0..rounds {
            let pairs = contenders.iter_mut().zip(&mut series);
            let mut run = |(contender, series): (&mut Contender<'_>, &mut Series)| {
                before(&contender.name);
                let figure = (contender.run)().with_context(|| contender.name.clone())?;
                series.rounds.push(figure);
                anyhow::Ok(())
            };
            if round.is_multiple_of(2) {
                pairs.into_iter().try_for_each(&mut run)?;
            } else {
                pairs.rev().try_for_each(&mut run)?;
            }
        }
        Ok(Self { title: title.into(), unit, better, series, missing: Vec::new() })
    }

    /// A contender's figures.
    pub fn find(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.name == name)
    }

    /// Why a contender did not take part.
    pub fn why_missing(&self, name: &str) -> Option<&str> {
        self.missing.iter().find(|missing| missing.name == name).map(|missing| missing.why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn rounds_take_turns_and_every_second_goes_backwards() {
        let order = RefCell::new(String::new());
        let contender = |name: &'static str, figure: f64| Contender::new(name, move || Ok(figure));
        let group = Group::race(
            "turns",
            ("ns", Better::Lower),
            3,
            vec![contender("a", 1.0), contender("b", 2.0)],
            &|name| order.borrow_mut().push_str(name),
        );
        assert_eq!(order.into_inner(), "abbaab");
        assert_eq!(group.unwrap().find("b").unwrap().rounds, [2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_contender_that_fails_is_named() {
        let failing = Contender::new("broken", || anyhow::bail!("no veth"));
        let error = Group::race("x", ("ns", Better::Lower), 1, vec![failing], &|_| {}).unwrap_err();
        assert_eq!(format!("{error:#}"), "broken: no veth");
    }
}
