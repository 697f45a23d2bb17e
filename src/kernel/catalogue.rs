//! Which guest kernels can be built, and from what: versions, profiles, config
//! fragments and patches, as they stand in `kernel/`.
//!
//! The directory is embedded, so that one file can build a kernel on any
//! machine. A *recipe* is everything of ours that shapes a kernel: the resolved
//! fragments and the patches. Its digest tells a kernel of this program from
//! one that an older or newer program left in the same cache.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use include_dir::{Dir, include_dir};
use serde::Deserialize;
use sha2::{Digest, Sha256};

static DATA: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/kernel");

/// The profile that is built when nobody names one.
pub const DEFAULT_PROFILE: &str = "default";

/// What `kernel/versions.toml` and `kernel/profiles.toml` say.
#[derive(Debug)]
pub struct Catalogue {
    default: String,
    versions: Vec<Version>,
    profiles: BTreeMap<String, Profile>,
}

/// One version that is known by name, such as `7.3`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// `MAJOR.MINOR`, also the name of its directory of patches.
    pub name: String,
    /// The tarball on kernel.org; absent where nobody has pinned one.
    pub kernel_org: Option<KernelOrg>,
    /// The source package on Debian and its descendants.
    pub debian: DebianSource,
    /// Build steps by profile, an estimate for the progress bar.
    #[serde(default)]
    pub steps: BTreeMap<String, usize>,
}

/// A tarball on kernel.org whose content is pinned.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelOrg {
    /// The full release, such as `6.12.64`.
    pub release: String,
    /// SHA-256 of `linux-RELEASE.tar.xz`, in hexadecimal.
    pub sha256: String,
}

/// Where a distribution of Debian's family keeps the source.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianSource {
    /// Package that contains `usr/src/PACKAGE.tar.xz`.
    pub package: String,
    /// `own`, or a suite of the machine's Debian mirror, in order.
    pub suites: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionsFile {
    default: String,
    version: Vec<Version>,
}

#[derive(Debug, Deserialize)]
struct Profile {
    fragments: Vec<String>,
}

/// A config fragment or a patch: its name and its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// File name without directories.
    pub name: &'static str,
    /// Content of the file.
    pub text: &'static str,
}

/// Everything of ours that shapes one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// Config fragments, later ones win.
    pub fragments: Vec<Part>,
    /// Patches in the order in which they apply.
    pub patches: Vec<Part>,
}

impl Recipe {
    /// SHA-256 over names and contents, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (kind, parts) in [("fragment", &self.fragments), ("patch", &self.patches)] {
            for part in parts {
                // Lengths keep the end of one text apart from the start of the next.
                hash.update(format!("{kind} {} {}\n", part.name, part.text.len()));
                hash.update(part.text);
            }
        }
        hex(&hash.finalize())
    }
}

impl Catalogue {
    /// Reads the embedded files. Fails only where this program was built wrongly.
    pub fn embedded() -> Result<Self> {
        let versions: VersionsFile = toml::from_str(text("versions.toml")?)
            .context("kernel/versions.toml in this program is wrong")?;
        let profiles = toml::from_str(text("profiles.toml")?)
            .context("kernel/profiles.toml in this program is wrong")?;
        Ok(Self { default: versions.default, versions: versions.version, profiles })
    }

    /// The version that `auto` stands for.
    #[must_use]
    pub fn default_version(&self) -> &str {
        &self.default
    }

    /// Every version, the default first.
    #[must_use]
    pub fn versions(&self) -> &[Version] {
        &self.versions
    }

    /// The version of this name, if it is one of ours.
    #[must_use]
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|version| version.name == name)
    }

    /// The smallest profile whose fragments set all of these options (named without `CONFIG_`).
    #[must_use]
    pub fn profile_with(&self, options: &[&str]) -> Option<&str> {
        let has = |profile: &Profile, option: &str| {
            let line = format!("CONFIG_{option}=y");
            profile.fragments.iter().any(|fragment| {
                text(&format!("config/{fragment}.config")).is_ok_and(|t| t.lines().any(|l| l.trim() == line))
            })
        };
        let fits = |name: &&str| {
            self.profiles.get(*name).is_some_and(|profile| options.iter().all(|option| has(profile, option)))
        };
        [DEFAULT_PROFILE, "full"].into_iter().find(fits)
    }

    /// The version of this name, or an error that lists those there are.
    pub fn expect_version(&self, name: &str) -> Result<&Version> {
        self.version(name).ok_or_else(|| {
            let known: Vec<_> = self.versions.iter().map(|version| version.name.as_str()).collect();
            anyhow!(
                "there is no guest kernel {name} in the catalogue, only {}; another one can be \
                 built with --source DIR|TARBALL",
                known.join(", ")
            )
        })
    }

    /// Names of the profiles, in alphabetical order.
    pub fn profiles(&self) -> impl Iterator<Item = &str> {
        self.profiles.keys().map(String::as_str)
    }

    /// The fragments and patches for a version. A version that is not in the
    /// catalogue (the user's own source) has no patches.
    pub fn recipe(&self, version: &str, profile: &str) -> Result<Recipe> {
        let Some(profile) = self.profiles.get(profile) else {
            let known: Vec<_> = self.profiles().collect();
            bail!("there is no kernel profile '{profile}', only {}", known.join(" and "));
        };
        let fragments = profile
            .fragments
            .iter()
            .map(|name| {
                let file = if name.ends_with(".config") { name.clone() } else { format!("{name}.config") };
                part(Path::new("config").join(file).as_path())
            })
            .collect::<Result<_>>()?;
        let mut patches = Vec::new();
        if let Some(dir) = DATA.get_dir(Path::new("patches").join(version)) {
            for file in dir.files() {
                if file.path().extension().is_some_and(|extension| extension == "patch") {
                    patches.push(part(file.path())?);
                }
            }
        }
        patches.sort_by_key(|patch: &Part| patch.name);
        Ok(Recipe { fragments, patches })
    }
}

fn part(path: &Path) -> Result<Part> {
    let file = DATA
        .get_file(path)
        .with_context(|| format!("kernel/{} is missing in this program", path.display()))?;
    let text = file.contents_utf8().with_context(|| format!("kernel/{} is not UTF-8", path.display()))?;
    let name = file.path().file_name().and_then(|name| name.to_str()).unwrap_or_default();
    Ok(Part { name, text })
}

fn text(name: &str) -> Result<&'static str> {
    Ok(part(Path::new(name))?.text)
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_has_a_recipe_in_every_profile() {
        let catalogue = Catalogue::embedded().unwrap();
        assert!(catalogue.version(catalogue.default_version()).is_some());
        for version in catalogue.versions() {
            for profile in catalogue.profiles() {
                let recipe = catalogue.recipe(&version.name, profile).unwrap();
                assert!(!recipe.fragments.is_empty(), "{} {profile}", version.name);
            }
        }
    }

    #[test]
    fn pins_are_sha256_sums_of_a_release_of_that_version() {
        for version in Catalogue::embedded().unwrap().versions() {
            let Some(pin) = &version.kernel_org else { continue };
            assert_eq!(pin.sha256.len(), 64, "{}", version.name);
            assert!(pin.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()));
            assert!(pin.release.starts_with(&format!("{}.", version.name)));
        }
    }

    #[test]
    fn the_digest_changes_with_every_name_text_and_order() {
        let a = Part { name: "a", text: "one" };
        let b = Part { name: "b", text: "two" };
        let recipes = [
            Recipe { fragments: vec![], patches: vec![] },
            Recipe { fragments: vec![a], patches: vec![] },
            Recipe { fragments: vec![], patches: vec![a] },
            Recipe { fragments: vec![a, b], patches: vec![] },
            Recipe { fragments: vec![b, a], patches: vec![] },
            Recipe { fragments: vec![Part { name: "a", text: "onf" }], patches: vec![] },
            Recipe { fragments: vec![Part { name: "c", text: "one" }], patches: vec![] },
        ];
        for (i, left) in recipes.iter().enumerate() {
            for right in &recipes[i + 1..] {
                assert_ne!(left.digest(), right.digest(), "{left:?} {right:?}");
            }
        }
    }

    #[test]
    fn unknown_names_are_answered_with_the_known_ones() {
        let catalogue = Catalogue::embedded().unwrap();
        let error = catalogue.expect_version("5.10").unwrap_err().to_string();
        assert!(error.contains("7.3, 6.12, 6.1"), "{error}");
        let error = catalogue.recipe("7.3", "huge").unwrap_err().to_string();
        assert!(error.contains("default"), "{error}");
    }
}
