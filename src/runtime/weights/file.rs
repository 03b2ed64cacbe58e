// SPDX-License-Identifier: Apache-2.0
//! Tensors inside memory-mapped files.

use crate::runtime::error::{Error, Result};
use crate::runtime::mlx::{Array, foreign_array};
use lowering::ir::DType;
use memmap2::{Mmap, UncheckedAdvice};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A tensor in a file, row-major, such as safetensors stores it.
#[derive(Clone)]
pub struct FileTensor {
    map: Arc<Mmap>,
    /// The file.
    pub path: PathBuf,
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub nbytes: usize,
    /// Element type.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<i32>,
}

impl FileTensor {
    /// A view of `nbytes` bytes at `offset`; a file is mapped once for all its tensors.
    ///
    /// # Errors
    /// The file cannot be mapped, ends before the tensor does, or the size is not the shape's.
    pub fn open(
        path: &Path,
        offset: usize,
        nbytes: usize,
        dtype: DType,
        shape: Vec<i32>,
    ) -> Result<FileTensor> {
        let wrong = |reason: String| Error::WeightFile {
            path: path.display().to_string(),
            reason,
        };
        let map = map_file(path).map_err(|error| wrong(error.to_string()))?;
        FileTensor::in_map(map, path, offset, nbytes, dtype, shape)
    }

    /// The same in a file that is mapped already.
    pub fn in_map(
        map: Arc<Mmap>,
        path: &Path,
        offset: usize,
        nbytes: usize,
        dtype: DType,
        shape: Vec<i32>,
    ) -> Result<FileTensor> {
        let wrong = |reason: String| Error::WeightFile {
            path: path.display().to_string(),
            reason,
        };
        if offset.checked_add(nbytes).is_none_or(|end| end > map.len()) {
            return Err(wrong(format!(
                "it has {} bytes, and a tensor lies at {offset} with {nbytes}: the file is truncated",
                map.len()
            )));
        }
        let expected = shape.iter().try_fold(dtype.size(), |total, size| {
            total.checked_mul(usize::try_from(*size).ok()?)
        });
        if expected != Some(nbytes) {
            return Err(wrong(format!(
                "{nbytes} bytes at {offset} are not {dtype}{shape:?}"
            )));
        }
        Ok(FileTensor {
            map,
            path: path.to_owned(),
            offset,
            nbytes,
            dtype,
            shape,
        })
    }

    /// The tensor that lies `first` bytes into this one.
    ///
    /// # Errors
    /// The file ends before it does.
    pub fn part(&self, first: usize, dtype: DType, shape: Vec<i32>) -> Result<FileTensor> {
        let elements = shape.iter().map(|size| *size as usize);
        let nbytes = elements.fold(dtype.size(), usize::saturating_mul);
        let offset = self.offset.saturating_add(first);
        FileTensor::in_map(self.map.clone(), &self.path, offset, nbytes, dtype, shape)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.offset..self.offset + self.nbytes]
    }

    /// Tells the system that the tensor's pages are not needed in memory any more; they can be read
    /// again.
    pub fn forget_pages(&self) {
        let first = self.offset.next_multiple_of(PAGE);
        let length = (self.offset + self.nbytes).saturating_sub(first) / PAGE * PAGE;
        if length > 0 {
            // Only a hint: without it the system takes the pages back later.
            // SAFETY: the map is of a file and read-only, so that no content is lost.
            let _ = unsafe {
                self.map
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, first, length)
            };
        }
    }

    /// The pages that the tensor lies in, as an array of its dtype, and its first element there.
    /// Metal takes foreign memory by whole pages only. The rest of the pages is never read.
    pub fn pages(&self) -> Result<(Array, usize)> {
        let first = self.offset / PAGE * PAGE;
        let nbytes = (self.offset + self.nbytes - first).next_multiple_of(PAGE);
        let shape = [(nbytes / PAGE) as i32, (PAGE / self.dtype.size()) as i32];
        let data = self.map[first..].as_ptr().cast_mut().cast();
        // SAFETY: the map lives as long as the array and is only read, where the tensor lies, which
        // `open` checked.
        let array = unsafe { foreign_array(data, nbytes, &shape, self.dtype, self.map.clone()) }?;
        Ok((array, (self.offset - first) / self.dtype.size()))
    }
}

/// A multiple of the page size of every machine that runs this.
const PAGE: usize = 16384;

/// Maps a file, or finds the map that another tensor of it holds.
fn map_file(path: &Path) -> std::io::Result<Arc<Mmap>> {
    static MAPS: Mutex<Option<HashMap<PathBuf, Weak<Mmap>>>> = Mutex::new(None);
    let path = path.canonicalize()?;
    let mut maps = MAPS.lock().unwrap_or_else(PoisonError::into_inner);
    let maps = maps.get_or_insert_default();
    if let Some(map) = maps.get(&path).and_then(Weak::upgrade) {
        return Ok(map);
    }
    let file = File::open(&path)?;
    // SAFETY: the map is only read. Nobody can stop another process from truncating the file, which
    // is true of every program that maps its weights.
    let map = Arc::new(unsafe { Mmap::map(&file) }?);
    maps.retain(|_, map| map.strong_count() > 0);
    maps.insert(path, Arc::downgrade(&map));
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("vllm-metal-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_view_reads_its_bytes_and_shares_the_map() {
        let path = temporary("view", &(0..32).collect::<Vec<u8>>());
        let first = FileTensor::open(&path, 8, 8, DType::Float32, vec![2]).unwrap();
        let second = FileTensor::open(&path, 16, 4, DType::Int8, vec![2, 2]).unwrap();
        assert_eq!(first.bytes(), [8, 9, 10, 11, 12, 13, 14, 15]);
        assert!(Arc::ptr_eq(&first.map, &second.map));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn truncation_a_wrong_size_and_a_missing_file_are_told_apart() {
        let path = temporary("short", &[0; 16]);
        let open = |offset, nbytes, shape| {
            FileTensor::open(&path, offset, nbytes, DType::Float32, shape)
                .err()
                .unwrap()
                .to_string()
        };
        assert!(open(12, 8, vec![2]).contains("the file is truncated"));
        assert!(open(usize::MAX, 8, vec![2]).contains("the file is truncated"));
        assert!(open(0, 8, vec![3]).contains("8 bytes at 0 are not float32[3]"));
        std::fs::remove_file(&path).unwrap();
        let missing = FileTensor::open(&path, 0, 4, DType::Float32, vec![1])
            .err()
            .unwrap();
        assert!(missing.to_string().contains(&path.display().to_string()));
    }
}
