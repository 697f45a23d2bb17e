//! Which matchers look at the command's output: those that were asked for, those of the user's files,
//! and those that the script itself names.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Read;
use std::rc::Rc;

use anyhow::{Context, Result, bail};

use crate::ci::matcher::{Obey, Scanner, builtin, format};
use crate::ci::places::Places;
use crate::cli::ci::{ALL, FindArgs, NONE};

/// Largest matcher file.
const LARGEST: u64 = 1 << 20;

/// The scanner, unless there is nothing to find. `unasked` says whether everything shall be found where
/// nothing was named.
pub fn scanner(
    args: &FindArgs,
    unasked: bool,
    obey: Obey,
    places: &Places,
) -> Result<Option<Rc<RefCell<Scanner>>>> {
    let has = |word: &str| args.matchers.iter().any(|name| name == word);
    if has(NONE) && (args.matchers.len() > 1 || !args.matcher.is_empty()) {
        bail!("--matchers none: other matchers are asked for too; leave one of them out");
    }
    let named = !args.matchers.is_empty() || !args.matcher.is_empty();
    let all = has(ALL) || (!named && unasked);
    if has(NONE) || !(named || all) {
        return Ok(None);
    }
    let mut matchers = Vec::new();
    for path in args.matcher.iter().rev() {
        let text = fs::read_to_string(path).with_context(|| format!("--matcher {}", path.display()))?;
        let read = format::parse(&text);
        matchers.extend(read.map_err(|why| anyhow::anyhow!("--matcher {}, {why}", path.display()))?);
    }
    matchers.extend(builtin::load(|name| all || has(name))?);
    let places = places.clone();
    let load = Box::new(move |path: &str| load(&places, path));
    Ok(Some(Rc::new(RefCell::new(Scanner::new(matchers, obey, load)?))))
}

/// Reads the matcher file that a script names: one of the repository, as its own name must not lead us
/// to what the script may not read.
fn load(places: &Places, path: &str) -> Result<Vec<format::Matcher>> {
    let Some(real) = places.find(path, None) else {
        bail!("{path}: there is no such file in the repository")
    };
    let mut text = String::new();
    File::open(real)
        .and_then(|file| file.take(LARGEST).read_to_string(&mut text))
        .with_context(|| path.to_owned())?;
    format::parse(&text).map_err(|why| anyhow::anyhow!("{path}, {why}"))
}
