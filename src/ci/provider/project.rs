//! What a job says of the repository that it builds, for those who tell GitHub of it.

/// A repository on GitHub and what of it is built. What a system does not say is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Project {
    /// `OWNER/NAME`.
    pub repository: Option<String>,
    /// The commit that findings are about: of a pull request its last one, not a merge of it.
    pub commit: Option<String>,
    /// The pull request's number.
    pub pull_request: Option<u64>,
    /// The job's page; no two jobs have the same.
    pub page: Option<String>,
}

/// `OWNER/NAME` of an address that Git knows.
pub fn repository(address: &str) -> Option<String> {
    let path = address.strip_suffix(".git").unwrap_or(address).trim_end_matches('/');
    let mut parts = path.rsplit(['/', ':']);
    let (name, owner) = (parts.next()?, parts.next()?);
    (!name.is_empty() && !owner.is_empty()).then(|| format!("{owner}/{name}"))
}

/// The number that a variable or the end of an address holds; for many systems `false` is none.
pub fn number(text: &str) -> Option<u64> {
    text.rsplit('/').next()?.parse().ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_git_name_a_repository() {
        for address in [
            "git@github.com:owner/name.git",
            "https://github.com/owner/name.git",
            "https://x:y@ghe.example.org/owner/name/",
            "ssh://git@github.com/owner/name",
        ] {
            assert_eq!(repository(address).as_deref(), Some("owner/name"), "{address}");
        }
        assert_eq!(repository("name"), None);
    }

    #[test]
    fn a_pull_request_is_a_number_or_ends_an_address() {
        assert_eq!(number("17"), Some(17));
        assert_eq!(number("https://github.com/owner/name/pull/17"), Some(17));
        assert_eq!([number("false"), number(""), number("0")], [None, None, None]);
    }
}
