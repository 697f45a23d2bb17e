//! What a build says while it runs. The library only emits; `commands` renders.

/// Something that whoever waits for a kernel may want to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// One line that stands for itself: a fallback and its reason, a decision.
    Note(String),
    /// A stage begins; the words name what is being done.
    Stage(String),
    /// The present stage goes on. Comes at least once a second while it lasts.
    Progress {
        /// How much is done.
        done: u64,
        /// How much there is, as far as is known.
        total: Option<u64>,
        /// What is being counted.
        unit: Unit,
    },
}

/// What a [`Event::Progress`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes of a download.
    Bytes,
    /// Steps of a compilation.
    Steps,
}

/// Takes events as they come.
pub type Report<'a> = &'a mut dyn FnMut(Event);
