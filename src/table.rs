//! A growing table that never moves its entries.
//!
//! Holds clients by slot. A `Vec` that doubles leaves its old halves behind in the heap, which for a few thousand
//! clients is more than the clients themselves.

/// The number of entries in a chunk.
const CHUNK: usize = 128;

/// Entries by index, most of them near the front.
#[derive(Debug)]
pub(crate) struct Table<T> {
    chunks: Vec<Box<[Option<T>; CHUNK]>>,
}

impl<T> Table<T> {
    /// Returns an empty table.
    pub(crate) fn new() -> Table<T> {
        Table { chunks: Vec::new() }
    }

    /// Returns the entry at an index.
    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        self.chunks.get(index as usize / CHUNK)?[index as usize % CHUNK].as_ref()
    }

    /// Returns the entry at an index for changes.
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        self.chunks.get_mut(index as usize / CHUNK)?[index as usize % CHUNK].as_mut()
    }

    /// Removes the entry at an index and returns it.
    pub(crate) fn take(&mut self, index: u32) -> Option<T> {
        self.chunks.get_mut(index as usize / CHUNK)?[index as usize % CHUNK].take()
    }

    /// Puts an entry at an index and returns the one that was there.
    pub(crate) fn insert(&mut self, index: u32, entry: T) -> Option<T> {
        let (chunk, place) = (index as usize / CHUNK, index as usize % CHUNK);
        while self.chunks.len() <= chunk {
            self.chunks.push(Box::new([const { None }; CHUNK]));
        }
        self.chunks[chunk][place].replace(entry)
    }

    /// Returns one more than the highest index that was ever used, rounded up.
    pub(crate) fn bound(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_do_not_move() {
        let mut table = Table::new();
        assert!(table.get(5).is_none() && table.take(5).is_none() && table.bound() == 0);
        assert_eq!(table.insert(300, 'a'), None);
        assert_eq!(table.bound(), 384);
        let before: *const char = table.get(300).expect("there");
        for index in 0..5_000 {
            table.insert(index + 301, 'b');
        }
        assert!(std::ptr::eq(before, table.get(300).expect("there")));
        assert_eq!(table.insert(300, 'c'), Some('a'));
        assert_eq!((table.take(300), table.take(300)), (Some('c'), None));
    }
}
