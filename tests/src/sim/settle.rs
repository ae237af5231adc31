//! Stores what an end decided, then lets it happen; a crash may come in between.

use bitmesh_core::channel::{Batch, Durable, Entry};

use super::{Sabotage, audit::Violation, world::Context};

/// Where a commit is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The batch is lost.
    BeforeCommit,
    /// The batch is durable, and so many of its actions were taken.
    Amid(usize),
}

impl Crash {
    /// Whether this commit is a crash, and where.
    fn draw<E>(context: &mut Context, entries: &[Entry<E>], actions: usize) -> Option<Self> {
        let worth = entries.iter().any(|entry| !matches!(entry, Entry::Block { .. }));
        if !worth || !context.one_in(context.plan.crash_in) {
            return None;
        }
        if actions == 0 || context.rng.bool() {
            return Some(Self::BeforeCommit);
        }
        Some(Self::Amid(context.rng.usize(0..actions)))
    }
}

/// One end of channels.
pub trait End {
    type Event: Clone;
    type Action;
    /// What makes it act before it has stored.
    const EARLY: Sabotage;

    fn store(
        &mut self,
        entries: &[Entry<Self::Event>],
        context: &mut Context,
    ) -> Result<(), Violation>;

    fn perform(&mut self, action: Self::Action, context: &mut Context) -> Result<(), Violation>;

    fn crash(&mut self, crash: Crash, context: &mut Context) -> Result<(), Violation>;
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// There was nothing in it.
    Nothing,
    Done,
    Crashed,
}

/// Stores a batch, then takes its actions.
pub fn settle<E: End>(
    end: &mut E,
    out: Batch<E::Event, E::Action>,
    context: &mut Context,
) -> Result<Settled, Violation> {
    let entries = out.entries().to_vec();
    let actions = out.release(&Durable::committed());
    if entries.is_empty() && actions.is_empty() {
        return Ok(Settled::Nothing);
    }
    let crash = Crash::draw(context, &entries, actions.len());
    let store = |end: &mut E, context: &mut Context| {
        if crash == Some(Crash::BeforeCommit) {
            end.crash(Crash::BeforeCommit, context)?;
            return Ok(Settled::Crashed);
        }
        end.store(&entries, context)?;
        Ok(Settled::Done)
    };
    let early = context.plan.sabotage == Some(E::EARLY);
    if !early && store(end, context)? == Settled::Crashed {
        return Ok(Settled::Crashed);
    }
    for (i, action) in actions.into_iter().enumerate() {
        if crash == Some(Crash::Amid(i)) {
            end.crash(Crash::Amid(i), context)?;
            return Ok(Settled::Crashed);
        }
        end.perform(action, context)?;
    }
    if early { store(end, context) } else { Ok(Settled::Done) }
}
