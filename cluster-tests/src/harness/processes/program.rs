//! What runs in the process of a node: our own program, or that of a user.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::site::Site;
use crate::harness::ground::Plan;

/// The program of every node.
#[derive(Debug, Clone)]
pub(super) enum Program {
    /// The program `cluster-node`.
    Ours(PathBuf),
    /// A user's: its command line, with placeholders.
    Theirs(Vec<String>),
}

/// What the placeholders stand for.
pub(super) struct Filling<'a> {
    pub(super) plan: &'a Plan,
    pub(super) listen: SocketAddr,
    pub(super) admin: SocketAddr,
}

impl Program {
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Ours(_))
    }

    /// The command of a node.
    pub(super) fn command(&self, site: &dyn Site, node: usize, filling: &Filling<'_>) -> Command {
        match self {
            Self::Ours(program) => site.command(node, program.as_os_str()),
            Self::Theirs(template) => {
                let mut words = template.iter().flat_map(|word| filling.fill(word)).map(OsString::from);
                let program = words.next().expect("a command line begins with a program");
                let mut command = site.command(node, &program);
                command.args(words);
                command.env("ROOMCAST_ID", &filling.plan.id);
                command.env("ROOMCAST_LISTEN", filling.listen.to_string());
                command.env("ROOMCAST_ADMIN", filling.admin.to_string());
                command.env("ROOMCAST_SEEDS", filling.plan.seeds.join(","));
                command
            }
        }
    }
}

impl Filling<'_> {
    /// A word of the command line: one for each seed when it contains `{seed}`.
    fn fill(&self, word: &str) -> Vec<String> {
        let word = word
            .replace("{id}", &self.plan.id)
            .replace("{listen}", &self.listen.to_string())
            .replace("{ip}", &self.listen.ip().to_string())
            .replace("{admin}", &self.admin.to_string())
            .replace("{seeds}", &self.plan.seeds.join(","));
        if word.contains("{seed}") {
            self.plan.seeds.iter().map(|seed| word.replace("{seed}", seed)).collect()
        } else {
            vec![word]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::ground::Settings;

    #[test]
    fn placeholders_are_filled() {
        let seeds = vec!["10.0.0.1:7".to_owned(), "10.0.0.2:7".to_owned()];
        let plan = Plan { id: "n1".into(), seeds, settings: Settings::default() };
        let [listen, admin] = ["10.0.0.2:7", "127.0.0.1:9"].map(|addr| addr.parse().unwrap());
        let filling = Filling { plan: &plan, listen, admin };
        for (word, words) in [
            ("plain", vec!["plain"]),
            ("--id={id}", vec!["--id=n1"]),
            ("{listen}", vec!["10.0.0.2:7"]),
            ("{ip}:0", vec!["10.0.0.2:0"]),
            ("{admin}", vec!["127.0.0.1:9"]),
            ("{seeds}", vec!["10.0.0.1:7,10.0.0.2:7"]),
            ("--seed={seed}", vec!["--seed=10.0.0.1:7", "--seed=10.0.0.2:7"]),
        ] {
            assert_eq!(filling.fill(word), words);
        }
    }
}
