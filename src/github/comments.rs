//! One comment on a pull request, which each run brings up to date.
//!
//! A line that the page does not show says whose it is. Anybody may write such a line, so only a
//! comment counts that the token's own user wrote, or a bot where a token belongs to none.

use anyhow::Result;
use octocrab::Error;
use serde::Deserialize;
use serde_json::json;

use super::api::Api;
use super::checks::digest;
use super::cut;

/// Most bytes of a comment; GitHub counts characters, of which there are never more.
const LONGEST: usize = 65_536;
/// What a token needs.
const RIGHT: &str = "`pull-requests: write`";

/// What the comment shall say.
#[derive(Debug, Clone, Copy)]
pub struct Comment<'a> {
    /// What tells it from others of ours.
    pub name: &'a str,
    /// The pull request.
    pub pull_request: u64,
    /// Markdown.
    pub text: &'a str,
}

/// A comment as the API tells of it.
#[derive(Deserialize)]
struct Posted {
    id: u64,
    body: Option<String>,
    html_url: Option<String>,
    user: Option<User>,
}

#[derive(Deserialize)]
struct User {
    login: String,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Brings the comment up to date and returns its page.
pub async fn post(api: &Api<'_>, comment: &Comment<'_>) -> Result<String> {
    let marker = format!("<!-- sekexe-ci {} -->", digest(comment.name));
    let body = cut(&format!("{marker}\n{}", comment.text.trim_end()), LONGEST);
    let what = format!("comment on pull request {}", comment.pull_request);
    api.persist(&what, RIGHT, async || {
        let user = own_name(api).await?;
        let route = api.route(&format!("issues/{}/comments", comment.pull_request));
        let all: Vec<Posted> = api.list(&format!("{route}?per_page=100"), "").await?;
        let ours = |posted: &Posted| {
            let by_us = posted.user.as_ref().is_some_and(|author| match &user {
                Some(name) => author.login == *name,
                None => author.kind.as_deref() == Some("Bot"),
            });
            by_us && posted.body.as_ref().is_some_and(|body| body.starts_with(&marker))
        };
        let posted: Posted = match all.into_iter().find(ours) {
            Some(posted) if posted.body.as_deref() == Some(&body) => posted,
            Some(posted) => {
                let route = api.route(&format!("issues/comments/{}", posted.id));
                api.patch(&route, &json!({ "body": body })).await?
            }
            None => api.post(&route, &json!({ "body": body })).await?,
        };
        Ok(posted.html_url.unwrap_or_default())
    })
    .await
}

/// The user whose token it is; nothing for an App's, which may not ask.
async fn own_name(api: &Api<'_>) -> octocrab::Result<Option<String>> {
    match api.get::<User>("/user").await {
        Ok(user) => Ok(Some(user.login)),
        Err(Error::GitHub { source, .. })
            if is_none_of_its_business(source.status_code.as_u16(), &source.message) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn is_none_of_its_business(status: u16, message: &str) -> bool {
    status == 404 || (status == 403 && message.starts_with("Resource not accessible"))
}
