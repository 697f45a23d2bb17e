//! Which host paths a machine must not show: where people and CI services keep credentials.
//!
//! The list is of paths in the home directory, of the CI runner's own files beside the workspace,
//! and of what the user adds. It is enforced outside the machine, not only covered inside it.

use std::path::{Path, PathBuf};

/// Paths relative to the home directory.
const IN_HOME: [&str; 32] = [
    ".ssh",
    ".gnupg",
    ".aws",
    ".azure",
    ".kube",
    ".netrc",
    ".git-credentials",
    ".config/git/credentials",
    ".config/gh",
    ".config/hub",
    ".config/glab-cli",
    ".config/gcloud",
    ".config/doctl",
    ".config/rclone",
    ".config/containers/auth.json",
    ".docker/config.json",
    ".cargo/credentials",
    ".cargo/credentials.toml",
    ".npmrc",
    ".yarnrc.yml",
    ".pypirc",
    ".config/pip/pip.conf",
    ".gem/credentials",
    ".composer/auth.json",
    ".m2/settings.xml",
    ".gradle/gradle.properties",
    ".vault-token",
    ".terraform.d/credentials.tfrc.json",
    ".password-store",
    ".local/share/keyrings",
    ".mozilla",
    ".config/sops",
];

/// Files that GitHub's runner keeps in its own directory, above the workspace.
const OF_RUNNER: [&str; 3] = [".credentials", ".credentials_rsaparams", ".runner"];

/// What exists of the default list, less `shown`, plus `asked`. Everything is absolute and free of
/// symbolic links, so that one name stands for each file.
pub fn existing(home: Option<&Path>, workspace: &Path, asked: &[PathBuf], shown: &[PathBuf]) -> Vec<PathBuf> {
    let in_home = home.into_iter().flat_map(|home| IN_HOME.iter().map(move |name| home.join(name)));
    let of_runner = workspace.ancestors().flat_map(|dir| OF_RUNNER.iter().map(move |name| dir.join(name)));
    let shown: Vec<PathBuf> = shown.iter().filter_map(|p| p.canonicalize().ok()).collect();
    let mut paths: Vec<PathBuf> = in_home
        .chain(of_runner)
        // Most are not there, which costs less to find out than what a path really is.
        .filter(|path| path.symlink_metadata().is_ok())
        .filter_map(|path| path.canonicalize().ok())
        .filter(|path| !shown.contains(path))
        .chain(asked.iter().filter_map(|path| path.canonicalize().ok()))
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_exists_is_listed_by_its_real_name() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().canonicalize().unwrap();
        fs::create_dir_all(home.join("real-ssh")).unwrap();
        std::os::unix::fs::symlink(home.join("real-ssh"), home.join(".ssh")).unwrap();
        fs::write(home.join(".npmrc"), "token").unwrap();
        fs::write(home.join("mine"), "secret").unwrap();
        fs::create_dir_all(home.join("runner/_work/repo")).unwrap();
        fs::write(home.join("runner/.credentials"), "").unwrap();

        let workspace = home.join("runner/_work/repo");
        let hidden = existing(Some(&home), &workspace, &[home.join("mine")], &[home.join(".npmrc")]);
        let expected = ["mine", "real-ssh", "runner/.credentials"].map(|name| home.join(name));
        assert_eq!(hidden, expected);
    }
}
