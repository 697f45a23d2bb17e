//! Which names the guest found its addresses by: what the log shows beside an address, and what
//! rules about names are judged by.
//!
//! Only answers of the host's own resolvers are believed, and only for the name that was asked for.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Addresses remembered; the oldest give way.
const MOST_ADDRESSES: usize = 8192;
/// Names remembered of each address.
const MOST_NAMES: usize = 16;

/// What was learned from answers.
#[derive(Debug, Default)]
pub struct Names {
    of: HashMap<IpAddr, Vec<String>>,
    order: VecDeque<IpAddr>,
}

impl Names {
    /// An answer said that `name`, in lower case, has this address.
    pub fn learn(&mut self, name: &str, address: IpAddr) {
        let names = self.of.entry(address).or_insert_with(|| {
            self.order.push_back(address);
            Vec::new()
        });
        if !names.iter().any(|known| known == name) {
            if names.len() == MOST_NAMES {
                names.remove(0);
            }
            names.push(name.to_owned());
        }
        if self.order.len() > MOST_ADDRESSES
            && let Some(oldest) = self.order.pop_front()
        {
            self.of.remove(&oldest);
        }
    }

    /// The names of an address.
    pub fn of(&self, address: IpAddr) -> &[String] {
        self.of.get(&address).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_address_gives_way() {
        let mut names = Names::default();
        let address = |n: usize| IpAddr::from([10, (n >> 16) as u8, (n >> 8) as u8, n as u8]);
        for n in 0..=MOST_ADDRESSES {
            names.learn("example.org", address(n));
        }
        assert_eq!((names.of(address(0)).len(), names.of(address(1)).len()), (0, 1));
        assert_eq!(names.of.len(), MOST_ADDRESSES);
    }

    #[test]
    fn an_address_may_have_several_names_but_not_any_number() {
        let mut names = Names::default();
        let address = IpAddr::from([192, 0, 2, 1]);
        for n in 0..100 {
            names.learn(&format!("{n}.example.org"), address);
            names.learn("99.example.org", address);
        }
        assert_eq!(names.of(address).len(), MOST_NAMES);
        assert!(names.of(address).contains(&"99.example.org".to_owned()));
    }
}
