//! GitHub's API, for jobs of other systems: a check run with annotations beside the code, and a
//! comment on a pull request that is kept up to date.
//!
//! Whatever fails on the way, nothing is there twice. An answer that did not come may mean that the
//! request was carried out, so nothing is sent again before what is there has been read. Each task is
//! therefore one pass from what is there to what shall be, and [`retry`] says when it is begun anew.
//! octocrab's own way to retry, which sends the same request once more, is not used; nor is its
//! cache, which would keep half an answer.
//!
//! The way there is direct, by no proxy. Names are found by files and DNS, which a static program has
//! in itself since glibc 2.34, and servers are known by the certificates of the machine.
//!
//! The asynchronous runtime lives and dies in here.

mod api;
mod checks;
mod comments;
mod retry;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

use api::Api;
pub use checks::Check;
pub use comments::Comment;

/// Whose API, and as whom.
#[derive(Debug, Clone, Copy)]
pub struct Access<'a> {
    /// `https://api.github.com`, or `https://HOST/api/v3` of an Enterprise Server.
    pub api_url: &'a str,
    /// What lets us in.
    pub token: &'a str,
    /// `OWNER/NAME`.
    pub repository: &'a str,
}

/// Told in words when there is something to wait for.
pub type Tell<'a> = &'a dyn Fn(&str);

/// The API of one repository.
pub struct GitHub<'a> {
    runtime: Runtime,
    api: Api<'a>,
}

impl<'a> GitHub<'a> {
    /// Nothing is sent yet.
    pub fn new(access: &Access<'_>, tell: Tell<'a>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("prepare for talking to GitHub")?;
        // The client starts a task of its own, for which it must be inside of the runtime.
        let inside = runtime.enter();
        let api = Api::new(access, tell)?;
        drop(inside);
        Ok(Self { runtime, api })
    }

    /// Brings the check run of this name up to date, or creates it. Returns its page.
    pub fn check(&self, check: &Check<'_>) -> Result<String> {
        self.runtime.block_on(checks::post(&self.api, check))
    }

    /// Brings the comment of this name up to date, or creates it. Returns its page.
    pub fn comment(&self, comment: &Comment<'_>) -> Result<String> {
        self.runtime.block_on(comments::post(&self.api, comment))
    }
}

/// The beginning of a text, of at most so many bytes; what is left out is said.
fn cut(text: &str, most: usize) -> String {
    const END: &str = "\n…";
    if text.len() <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub(END.len());
    let end = (0..=room).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{END}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(cut("äöü", 6), "äöü");
        assert_eq!(cut("äöüäöü", 9), "äö\n…");
    }
}
