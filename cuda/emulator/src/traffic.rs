//! Counts what the accesses of warps cost.

use std::collections::{HashMap, HashSet};

/// Bytes that global memory is read and written by.
const SECTOR: usize = 32;

/// The accesses of a launch, gathered into requests of warps.
#[derive(Default)]
pub(crate) struct Counter {
    /// How often each thread of the block came to a site.
    visits: HashMap<(Site, u32), u32>,
    /// The accesses of the block that runs, by site, warp, and how often its lanes had been there. A place may be several
    /// sites: a copy that fills in zeros alone writes, and reads nothing.
    requests: HashMap<(Site, u32, u32), Request>,
    totals: HashMap<Site, Total>,
    /// The sectors of global memory that were read, and those that were written.
    sectors: [HashSet<usize>; 2],
}

/// A load or a store in the code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Site {
    pub place: usize,
    pub shared: bool,
    pub write: bool,
}

/// What all requests of a site came to.
#[derive(Clone, Copy, Default)]
pub(crate) struct Total {
    pub requests: u64,
    pub cost: u64,
    pub bytes: u64,
}

/// The accesses that the lanes of a warp make together.
struct Request {
    /// Addresses by lane.
    lanes: Vec<(u32, usize)>,
    size: usize,
}

impl Counter {
    /// One thread's access.
    pub fn add(&mut self, site: Site, thread: u32, address: usize, size: usize) {
        let visits = self.visits.entry((site, thread)).or_default();
        let request = self.requests.entry((site, thread / 32, *visits));
        *visits += 1;
        request.or_insert(Request { lanes: Vec::new(), size }).lanes.push((thread % 32, address));
    }

    /// The block has ended: its requests are complete.
    pub fn end_block(&mut self) {
        self.visits.clear();
        for ((site, ..), request) in self.requests.drain() {
            let total = self.totals.entry(site).or_default();
            total.requests += 1;
            total.cost += match site.shared {
                true => request.passes(),
                false => {
                    let touched = request.sectors();
                    self.sectors[usize::from(site.write)].extend(&touched);
                    touched.len() as u64
                }
            };
            total.bytes += (request.lanes.len() * request.size) as u64;
        }
    }

    /// The totals, in the order of the code, and how many bytes the sectors have that were read and that were written.
    pub fn totals(self) -> (Vec<(Site, Total)>, [u64; 2]) {
        let mut totals: Vec<_> = self.totals.into_iter().collect();
        totals.sort_by_key(|(site, _)| *site);
        (totals, self.sectors.map(|sectors| SECTOR as u64 * sectors.len() as u64))
    }
}

impl Request {
    /// The sectors that are touched.
    fn sectors(&self) -> Vec<usize> {
        let sectors = |&(_, address): &(u32, usize)| address / SECTOR..=(address + self.size - 1) / SECTOR;
        let mut touched: Vec<usize> = self.lanes.iter().flat_map(sectors).collect();
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// How often the busiest of the 32 banks must serve a word of 4 bytes. Lanes that ask for 8 or 16 bytes are served
    /// by halves or quarters of the warp.
    fn passes(&self) -> u64 {
        let words_of_lane = self.size.div_ceil(4).max(1);
        let lanes_at_once = (32 / words_of_lane).max(1) as u32;
        (0..32u32.div_ceil(lanes_at_once))
            .map(|part| self.passes_of(part * lanes_at_once, lanes_at_once))
            .sum()
    }

    fn passes_of(&self, first_lane: u32, lanes: u32) -> u64 {
        let in_part = self.lanes.iter().filter(|(lane, _)| (first_lane..first_lane + lanes).contains(lane));
        let mut words: Vec<usize> =
            in_part.flat_map(|&(_, address)| address / 4..=(address + self.size - 1) / 4).collect();
        words.sort_unstable();
        words.dedup();
        let mut busy = [0; 32];
        words.iter().for_each(|word| busy[word % 32] += 1);
        busy.into_iter().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(size: usize, address: impl Fn(usize) -> usize) -> Request {
        Request { lanes: (0..32).map(|lane| (lane as u32, 4096 + address(lane))).collect(), size }
    }

    #[test]
    fn neighbours_share_sectors() {
        assert_eq!(request(4, |lane| 4 * lane).sectors().len(), 4);
        assert_eq!(request(4, |lane| 128 * lane).sectors().len(), 32);
        assert_eq!(request(4, |_| 0).sectors().len(), 1);
    }

    #[test]
    fn a_place_that_reads_for_some_lanes_and_writes_for_all_is_two_sites() {
        let (from, to) =
            (Site { place: 7, shared: false, write: false }, Site { place: 7, shared: true, write: true });
        let mut counter = Counter::default();
        for lane in 0..32 {
            if lane % 2 == 0 {
                counter.add(from, lane, 4096 + 16 * lane as usize, 16);
            }
            counter.add(to, lane, 65_536 + 16 * lane as usize, 16);
        }
        counter.end_block();
        let (totals, sectors) = counter.totals();
        let found: Vec<_> =
            totals.iter().map(|(site, total)| (*site == to, total.requests, total.cost)).collect();
        assert_eq!(found, [(false, 1, 16), (true, 1, 4)]);
        assert_eq!(sectors, [16 * 32, 0]);
    }

    #[test]
    fn a_bank_serves_one_word_at_a_time() {
        assert_eq!(request(4, |lane| 4 * lane).passes(), 1);
        assert_eq!(request(4, |_| 0).passes(), 1, "one word for all lanes");
        assert_eq!(request(4, |lane| 128 * lane).passes(), 32);
        assert_eq!(request(4, |lane| 132 * lane).passes(), 1, "rows of 33 words");
        assert_eq!(request(16, |lane| 16 * lane).passes(), 4);
        assert_eq!(request(2, |lane| 2 * lane).passes(), 1);
    }
}
