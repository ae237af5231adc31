//! A start from what is durable, the same at both ends.

use bitmesh_core::channel::{Book, Entry, InvalidEvent, Machine};

use super::audit::{Violation, violated};

/// Has a journal followed from its first entry on.
pub fn replay<'a, E: 'a>(
    journal: impl IntoIterator<Item = &'a Entry<E>>,
    follow: impl FnMut(&Entry<E>) -> Result<(), InvalidEvent>,
) -> Result<(), Violation> {
    let followed = journal.into_iter().try_for_each(follow);
    followed.or_else(|error| violated("a durable journal can be replayed", error.to_string()))
}

/// What is durable gives the same books and the same next key again.
pub fn check_alike<M: Machine + PartialEq>(
    before: (&Book<M>, u32),
    again: (&Book<M>, u32),
) -> Result<(), Violation> {
    let ((before, key), (again, key_again)) = (before, again);
    let books = before.iter().eq(again.iter()) && before.tips().eq(again.tips());
    if books && key == key_again {
        Ok(())
    } else {
        violated("a replay gives the state before the crash", "it does not")
    }
}
