//! Requests, pages of answers, and what failures mean.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use http::header::{ETAG, HeaderMap, HeaderName, IF_NONE_MATCH, LINK};
use http::{HeaderValue, Uri};
use octocrab::{Error, Octocrab};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::retry::{Failure, MOST, PATIENCE};
use super::{Access, Tell};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The API of one repository, as one token sees it.
pub struct Api<'a> {
    crab: Octocrab,
    repository: String,
    /// Pages by route. Asking again for one that has not changed costs nothing of the allowance. The
    /// last page of a list is not among them: where it is full, it stays the same when another follows.
    seen: RefCell<HashMap<String, Seen>>,
    /// Failures since something was last changed.
    failures: Cell<u32>,
    /// How much was seen to be done.
    done: Cell<usize>,
    tell: Tell<'a>,
}

#[derive(Clone)]
struct Seen {
    tag: HeaderValue,
    body: String,
    next: String,
}

impl<'a> Api<'a> {
    /// Nothing is sent yet.
    pub fn new(access: &Access<'_>, tell: Tell<'a>) -> Result<Self> {
        let Access { api_url, token, repository } = access;
        let url: Uri =
            api_url.trim_end_matches('/').parse().with_context(|| format!("--api-url {api_url}"))?;
        if !matches!(url.scheme_str(), Some("https" | "http")) || url.authority().is_none() {
            bail!("--api-url {api_url}: it is no address; GitHub's is https://api.github.com");
        }
        if repository.split('/').filter(|part| is_name(part)).count() != 2
            || repository.matches('/').count() != 1
        {
            bail!("--repository {repository}: name it as OWNER/NAME");
        }
        if token.bytes().any(|byte| !byte.is_ascii_graphic()) {
            bail!("the token has characters that no token has; is there a line end in it?");
        }
        let crab = Octocrab::builder()
            .base_uri(url)?
            .personal_token(*token)
            .set_connect_timeout(Some(CONNECT_TIMEOUT))
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .set_write_timeout(Some(ANSWER_TIMEOUT))
            .build()
            .map_err(|error| {
                anyhow!("{}", root_cause(&error).split(" (errors").next().unwrap_or_default())
                    .context("there is nothing to know GitHub by; install ca-certificates, or name a file with SSL_CERT_FILE")
            })?;
        let repository = (*repository).to_owned();
        Ok(Self {
            crab,
            repository,
            seen: RefCell::default(),
            failures: Cell::new(0),
            done: Cell::new(0),
            tell,
        })
    }

    /// The address of something of the repository.
    pub fn route(&self, rest: &str) -> String {
        format!("/repos/{}/{rest}", self.repository)
    }

    /// One thing.
    pub async fn get<T: DeserializeOwned>(&self, route: &str) -> octocrab::Result<T> {
        self.crab.get(route, None::<&()>).await
    }

    /// A new thing.
    pub async fn post<T: DeserializeOwned>(&self, route: &str, body: &Value) -> octocrab::Result<T> {
        let made = self.crab.post(route, Some(body)).await?;
        self.failures.set(0);
        Ok(made)
    }

    /// A thing, changed.
    pub async fn patch<T: DeserializeOwned>(&self, route: &str, body: &Value) -> octocrab::Result<T> {
        let changed = self.crab.patch(route, Some(body)).await?;
        self.failures.set(0);
        Ok(changed)
    }

    /// All things of a list, page by page; `key` is where an answer that is an object has them.
    pub async fn list<T: DeserializeOwned>(&self, route: &str, key: &str) -> octocrab::Result<Vec<T>> {
        let mut all = Vec::new();
        let mut next = Some(route.to_owned());
        while let Some(route) = next {
            let (body, behind) = self.page(&route).await?;
            next = behind;
            let wrong =
                |source| octocrab::Error::Serde { source, backtrace: std::backtrace::Backtrace::disabled() };
            let page: Value = serde_json::from_str(&body).map_err(wrong)?;
            let items = if page.is_array() { page } else { page[key].clone() };
            all.extend(serde_json::from_value::<Vec<T>>(items).map_err(wrong)?);
        }
        Ok(all)
    }

    async fn page(&self, route: &str) -> octocrab::Result<(String, Option<String>)> {
        let known = self.seen.borrow().get(route).cloned();
        let mut headers = HeaderMap::new();
        known.iter().for_each(|seen| drop(headers.insert(IF_NONE_MATCH, seen.tag.clone())));
        let answer = self.crab._get_with_headers(route, Some(headers)).await?;
        if let Some(seen) = known.filter(|_| answer.status() == http::StatusCode::NOT_MODIFIED) {
            return Ok((seen.body, Some(seen.next)));
        }
        let answer = octocrab::map_github_error(answer).await?;
        let next = answer.headers().get(LINK).and_then(|link| next_page(link.to_str().ok()?));
        let tag = answer.headers().get(ETAG).cloned();
        let body = self.crab.body_to_string(answer).await?;
        if let (Some(tag), Some(next)) = (tag, next.clone()) {
            let seen = Seen { tag, body: body.clone(), next };
            self.seen.borrow_mut().insert(route.to_owned(), seen);
        }
        Ok((body, next))
    }

    /// Says how much of a task is done. What was done unheard is no failure either.
    pub fn got_to(&self, done: usize) {
        if done > self.done.replace(done) {
            self.failures.set(0);
        }
    }

    /// Does a pass until one succeeds, as long as there is sense in it. `what` and `right` say what
    /// was being done and what a token needs for it.
    pub async fn persist<T>(
        &self,
        what: &str,
        right: &str,
        pass: impl AsyncFn() -> octocrab::Result<T>,
    ) -> Result<T> {
        let begun = Instant::now();
        loop {
            let failure = match pass().await {
                Ok(done) => return Ok(done),
                Err(error) => describe(&error),
            };
            let failures = self.failures.get() + 1;
            self.failures.set(failures);
            let wait = failure.wait(failures, now());
            let wait = wait.filter(|wait| failures < MOST && begun.elapsed() + *wait <= PATIENCE);
            let Some(wait) = wait else {
                return Err(self.explain(&failure, right).context(what.to_owned()));
            };
            let message = failure.message.lines().next().unwrap_or_default();
            (self.tell)(&format!("{what}: {message}; trying again in {} s", wait.as_secs()));
            tokio::time::sleep(wait).await;
        }
    }

    /// A failure in words, with what to try.
    fn explain(&self, failure: &Failure, right: &str) -> anyhow::Error {
        let repository = &self.repository;
        let remedy = match failure.status {
            Some(401) => "the token is wrong or has expired".to_owned(),
            Some(403 | 429) if failure.is_limit() => match failure.wait(1, now()) {
                Some(wait) => format!("the limit is lifted in {} s, try again then", wait.as_secs()),
                None => "try again later".to_owned(),
            },
            Some(403) => format!("the token has not the right; it takes {right}"),
            Some(404 | 410) => format!(
                "there is no such thing in {repository}, or the token may not see it; it takes {right}"
            ),
            Some(301 | 307 | 308) => format!("{repository} has another name now"),
            Some(_) => "GitHub refuses it".to_owned(),
            None => "is the address right, and can it be reached from here?".to_owned(),
        };
        let status = failure.status.map(|status| format!("{status} ")).unwrap_or_default();
        anyhow!("{status}{}; {remedy}", failure.message.trim().replace('\n', ", "))
    }
}

/// What is known of an error.
fn describe(error: &Error) -> Failure {
    let Error::GitHub { source, .. } = error else {
        return Failure {
            message: root_cause(error),
            on_the_way: matches!(error, Error::Service { .. } | Error::Hyper { .. }),
            ..Failure::default()
        };
    };
    let header = |name: &str| -> Option<u64> {
        let name = HeaderName::try_from(name).ok()?;
        source.headers.as_ref()?.get(name)?.to_str().ok()?.parse().ok()
    };
    let details = source.errors.iter().flatten().map(|detail| match &detail["message"] {
        Value::String(message) => message.clone(),
        _ => detail.as_str().map_or_else(|| detail.to_string(), str::to_owned),
    });
    Failure {
        status: Some(source.status_code.as_u16()),
        message: std::iter::once(source.message.clone()).chain(details).collect::<Vec<_>>().join("\n"),
        retry_after: header("retry-after"),
        remaining: header("x-ratelimit-remaining"),
        reset: header("x-ratelimit-reset"),
        on_the_way: false,
    }
}

/// The last of an error's causes, which says most.
fn root_cause(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match error.source() {
        Some(_) => cause.to_string(),
        None => error.to_string().lines().next().unwrap_or_default().to_owned(),
    }
}

/// The route of the next page. Only its path is taken, so that no answer can send the token elsewhere.
fn next_page(link: &str) -> Option<String> {
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let url: Uri = next.split_once('<')?.1.split_once('>')?.0.parse().ok()?;
    url.path_and_query().map(ToString::to_string)
}

/// Whether this may be a part of a repository's name.
fn is_name(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_a_path_on_the_same_server() {
        let link = "<https://elsewhere.example/repos/o/r/x?page=1>; rel=\"prev\", <https://elsewhere.example/repos/o/r/x?per_page=100&page=3>; rel=\"next\"";
        assert_eq!(next_page(link).as_deref(), Some("/repos/o/r/x?per_page=100&page=3"));
        assert_eq!(next_page("<https://x.example/?page=1>; rel=\"first\""), None);
    }

    #[test]
    fn bad_addresses_names_and_tokens_are_refused() {
        let tell: Tell<'_> = &|_| {};
        let access = |api_url, token, repository| Access { api_url, token, repository };
        for (access, said) in [
            (access("api.github.com", "t", "o/r"), "--api-url api.github.com: it is no address"),
            (access("https://api.github.com", "t", "o"), "--repository o: name it as OWNER/NAME"),
            (access("https://api.github.com", "t", "o/../r"), "name it as OWNER/NAME"),
            (access("https://api.github.com", "t\n", "o/r"), "is there a line end in it?"),
        ] {
            let error = Api::new(&access, tell).err().expect("it is refused");
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
    }
}
