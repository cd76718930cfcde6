//! Checkpoints: parts are put together, and a file appears only whole.

use crate::record::Checkpoint;

/// The most bytes of one checkpoint that are put together.
pub(crate) const MAX_CONTENT_LEN: u64 = 64 << 20;

/// The parts of the checkpoint that is being taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    gathered: Option<Checkpoint>,
}

impl Parts {
    /// Adds a part; answers with the whole checkpoint once nothing of it is missing. Parts that do
    /// not belong together, or are more than was announced, give none.
    pub(crate) fn add(&mut self, part: &Checkpoint, more: bool) -> Option<Checkpoint> {
        let mut whole = match self.gathered.take() {
            Some(begun) if begun.number == part.number && begun.kind == part.kind => begun,
            _ => Checkpoint { content: Vec::new(), ..part.clone() },
        };
        let len = whole.content.len() as u64 + part.content.len() as u64;
        if len > whole.total_len || len > MAX_CONTENT_LEN {
            return None;
        }
        whole.content.extend_from_slice(&part.content);
        if more {
            self.gathered = Some(whole);
            return None;
        }
        (len == whole.total_len).then_some(whole)
    }
}
