// SPDX-License-Identifier: Apache-2.0
//! A folder of safetensors files: which tensors it has, and where.

use super::FileTensor;
use crate::plan_file::element_type;
use crate::runtime::error::{Error, Result};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which file holds which tensor, where a checkpoint has several.
const INDEX_FILE: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: usize,
    nbytes: usize,
}

/// A checkpoint whose files are mapped.
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<(PathBuf, Arc<Mmap>)>,
    tensors: BTreeMap<String, Place>,
    /// Tensors that several files have.
    ambiguous: BTreeSet<String>,
}

fn wrong(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::WeightFile {
        path: path.display().to_string(),
        reason: reason.to_string(),
    }
}

impl Checkpoint {
    /// Reads the headers of all safetensors files of a folder, or of those that its index names.
    ///
    /// # Errors
    /// There is none, or one is missing, truncated or damaged.
    pub fn open(folder: &Path) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint {
            folder: folder.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            ambiguous: BTreeSet::new(),
        };
        for path in files(folder)? {
            checkpoint.add(path)?;
        }
        if checkpoint.files.is_empty() {
            return Err(wrong(folder, "there is no safetensors file"));
        }
        Ok(checkpoint)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let file = File::open(&path).map_err(|error| wrong(&path, error))?;
        // SAFETY: the map is only read. Nobody can stop another process from truncating the file,
        // which is true of every program that maps its weights.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| wrong(&path, error))?;
        let (length, layout) = SafeTensors::read_metadata(&map).map_err(|error| {
            let reason = format!("it is truncated or damaged ({error}): download it again");
            wrong(&path, reason)
        })?;
        for (name, info) in layout.tensors() {
            let (start, end) = info.data_offsets;
            let place = Place {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: 8 + length + start,
                nbytes: end - start,
            };
            if self.tensors.insert(name.clone(), place).is_some() {
                self.ambiguous.insert(name);
            }
        }
        self.files.push((path, Arc::new(map)));
        Ok(())
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// There is none, several files have one, or its element type is one that MLX cannot hold.
    pub fn tensor(&self, name: &str) -> Result<FileTensor> {
        let place = self
            .tensors
            .get(name)
            .ok_or_else(|| wrong(&self.folder, format!("no file has a tensor {name:?}")))?;
        let (path, map) = &self.files[place.file];
        if self.ambiguous.contains(name) {
            let reason = format!(
                "several files have a tensor {name:?}, and no {INDEX_FILE} says which is meant"
            );
            return Err(wrong(&self.folder, reason));
        }
        let unusable = || {
            let (dtype, shape) = (place.dtype, &place.shape);
            wrong(path, format!("tensor {name:?} is {dtype:?}{shape:?}"))
        };
        let dtype = element_type(place.dtype).ok_or_else(unusable)?;
        let sizes = place.shape.iter().map(|size| i32::try_from(*size));
        let shape = sizes
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| unusable())?;
        FileTensor::in_map(map.clone(), path, place.offset, place.nbytes, dtype, shape)
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join(INDEX_FILE);
    if index.exists() {
        let text = fs::read(&index).map_err(|error| wrong(&index, error))?;
        let read: Index = serde_json::from_slice(&text).map_err(|error| wrong(&index, error))?;
        let names: BTreeSet<String> = read.weight_map.into_values().collect();
        return Ok(names.into_iter().map(|name| folder.join(name)).collect());
    }
    let entries = fs::read_dir(folder).map_err(|error| wrong(folder, error))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| wrong(folder, error))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("vllm-metal-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    fn shard(path: &Path, tensors: &[(&str, u8)]) {
        let views = tensors.iter().map(|(name, value)| {
            let value = std::slice::from_ref(value);
            (*name, TensorView::new(Dtype::U8, vec![1], value).unwrap())
        });
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    #[test]
    fn tensors_are_found_in_all_files_or_in_those_of_the_index() {
        let folder = folder("checkpoint");
        shard(&folder.join("a.safetensors"), &[("x", 1), ("z", 5)]);
        shard(&folder.join("b.safetensors"), &[("y", 2)]);
        let read = |name: &str| {
            Checkpoint::open(&folder)?
                .tensor(name)
                .map(|t| t.bytes().to_vec())
        };
        assert_eq!((read("x").unwrap(), read("y").unwrap()), (vec![1], vec![2]));
        shard(&folder.join("copy.safetensors"), &[("x", 3)]);
        assert_eq!(read("z").unwrap(), [5]);
        assert!(
            read("x")
                .unwrap_err()
                .to_string()
                .contains("several files have a tensor \"x\"")
        );
        let index = r#"{"weight_map": {"y": "b.safetensors", "x": "copy.safetensors"}}"#;
        fs::write(folder.join(INDEX_FILE), index).unwrap();
        assert_eq!((read("x").unwrap(), read("y").unwrap()), (vec![3], vec![2]));
        assert!(
            read("w")
                .unwrap_err()
                .to_string()
                .contains("no file has a tensor \"w\"")
        );
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn an_empty_folder_a_missing_and_a_cut_file_are_told_apart() {
        let folder = folder("bad-checkpoint");
        let refusal = || Checkpoint::open(&folder).err().unwrap().to_string();
        assert!(refusal().contains("there is no safetensors file"));
        shard(&folder.join("a.safetensors"), &[("x", 1)]);
        let bytes = fs::read(folder.join("a.safetensors")).unwrap();
        fs::write(folder.join("a.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
        assert!(refusal().contains("a.safetensors: it is truncated or damaged"));
        fs::write(
            folder.join(INDEX_FILE),
            r#"{"weight_map": {"x": "b.safetensors"}}"#,
        )
        .unwrap();
        assert!(refusal().contains("b.safetensors"));
        fs::remove_dir_all(folder).unwrap();
    }
}
