// SPDX-License-Identifier: Apache-2.0
//! A plan as a file: a safetensors container with the plan, named texts and the tensors that no
//! checkpoint holds.
//!
//! Every part carries its SHA-256, which is checked when the part is read: a file that was cut,
//! edited or written by another version says so instead of giving a wrong model. The same contents
//! give the same bytes.

use crate::runtime::error::{Error, Result};
use crate::runtime::host::HostTensor;
use crate::runtime::weights::FileTensor;
use lowering::ir::DType;
use lowering::plan::Plan;
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Marks a plan file.
pub const FORMAT: &str = "vllm-metal/plan-file";

/// Version of the container and of what its texts mean; another one is refused.
pub const VERSION: u32 = 1;

/// Key of the container's metadata.
const METADATA: &str = "vllm-metal";

/// Name of the part that holds the plan.
const PLAN: &str = "plan";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    /// Hash of each part, in hexadecimal.
    sha256: BTreeMap<String, String>,
}

/// Type, sizes and bytes: a tensor's meaning is in all three.
fn digest(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{dtype:?}{shape:?}"));
    hash.update(bytes);
    hex::encode(hash.finalize())
}

fn stored(dtype: DType) -> Dtype {
    match dtype {
        DType::Bool => Dtype::BOOL,
        DType::Uint8 => Dtype::U8,
        DType::Uint16 => Dtype::U16,
        DType::Uint32 => Dtype::U32,
        DType::Int8 => Dtype::I8,
        DType::Int16 => Dtype::I16,
        DType::Int32 => Dtype::I32,
        DType::Int64 => Dtype::I64,
        DType::Float16 => Dtype::F16,
        DType::Bfloat16 => Dtype::BF16,
        DType::Float32 => Dtype::F32,
        DType::Float64 => Dtype::F64,
    }
}

/// The element type of a safetensors tensor; `None` for one that MLX cannot hold.
pub fn element_type(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::BOOL => DType::Bool,
        Dtype::U8 => DType::Uint8,
        Dtype::U16 => DType::Uint16,
        Dtype::U32 => DType::Uint32,
        Dtype::I8 => DType::Int8,
        Dtype::I16 => DType::Int16,
        Dtype::I32 => DType::Int32,
        Dtype::I64 => DType::Int64,
        Dtype::F16 => DType::Float16,
        Dtype::BF16 => DType::Bfloat16,
        Dtype::F32 => DType::Float32,
        Dtype::F64 => DType::Float64,
        _ => return None,
    })
}

/// Differs between processes, also of machines that share a folder, and between calls.
fn unique() -> String {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = time.map_or(0, |time| time.as_nanos());
    format!("{}-{nanoseconds}", std::process::id())
}

/// Parts of a plan file before it is written.
#[derive(Default)]
pub struct Contents {
    /// UTF-8 texts and other bytes by name.
    pub texts: BTreeMap<String, Vec<u8>>,
    /// Tensors by name; no text has the name of one.
    pub tensors: BTreeMap<String, HostTensor>,
}

/// Writes a plan file. It appears under its name whole or not at all.
///
/// # Errors
/// The folder cannot be written, or a name is given twice.
pub fn write(path: &Path, plan: &Plan, contents: Contents) -> Result<()> {
    let wrong = |reason: String| Error::PlanFile {
        path: path.display().to_string(),
        reason,
    };
    let plan = plan.to_bytes().map_err(|error| wrong(error.to_string()))?;
    let name_of_plan = PLAN.to_owned();
    let mut parts: BTreeMap<&String, (Dtype, Vec<usize>, &[u8])> = BTreeMap::new();
    let mut duplicate = None;
    for (name, text) in contents.texts.iter().chain([(&name_of_plan, &plan)]) {
        let replaced = parts.insert(name, (Dtype::U8, vec![text.len()], text));
        duplicate = duplicate.or(replaced.map(|_| name));
    }
    for (name, tensor) in &contents.tensors {
        let shape = tensor.shape.iter().map(|size| *size as usize).collect();
        let replaced = parts.insert(name, (stored(tensor.dtype), shape, &tensor.bytes));
        duplicate = duplicate.or(replaced.map(|_| name));
    }
    if let Some(name) = duplicate {
        return Err(wrong(format!("two parts are called {name:?}")));
    }
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        sha256: parts
            .iter()
            .map(|(name, (dtype, shape, bytes))| ((*name).clone(), digest(*dtype, shape, bytes)))
            .collect(),
    };
    let header = serde_json::to_string(&header).map_err(|error| wrong(error.to_string()))?;
    let views = parts
        .into_iter()
        .map(|(name, (dtype, shape, bytes))| Ok((name, TensorView::new(dtype, shape, bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| wrong(error.to_string()))?;
    let metadata = HashMap::from([(METADATA.to_owned(), header)]);
    // Beside its place, because a rename does not cross file systems.
    let temporary = path.with_extension(format!("{}.tmp", unique()));
    let bytes =
        safetensors::serialize(views, Some(metadata)).map_err(|error| wrong(error.to_string()))?;
    fs::write(&temporary, bytes)
        .map_err(|error| wrong(error.to_string()))
        .and_then(|()| fs::rename(&temporary, path).map_err(|error| wrong(error.to_string())))
        .inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })
}

/// A plan file that is open for reading.
pub struct PlanFile {
    map: Arc<Mmap>,
    path: PathBuf,
    /// Where the parts' bytes begin.
    data: usize,
    layout: Metadata,
    header: Header,
}

impl PlanFile {
    /// Opens a file and reads its table of contents.
    ///
    /// # Errors
    /// It cannot be mapped, is truncated, is no plan file or one of another version.
    pub fn open(path: &Path) -> Result<PlanFile> {
        let wrong = |reason: String| Error::PlanFile {
            path: path.display().to_string(),
            reason,
        };
        let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
        // SAFETY: the map is only read; plan files are replaced as a whole and never edited.
        let map = unsafe { Mmap::map(&file) }.map_err(|error| wrong(error.to_string()))?;
        let (length, layout) = SafeTensors::read_metadata(&map)
            .map_err(|error| wrong(format!("it is truncated, or no plan file ({error})")))?;
        let text = layout
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA))
            .ok_or_else(|| wrong("it is a safetensors file without a plan".to_owned()))?;
        let header: Header = serde_json::from_str(text)
            .map_err(|error| wrong(format!("its header is damaged ({error})")))?;
        if header.format != FORMAT || header.version != VERSION {
            return Err(wrong(format!(
                "it is {:?} version {}, and this build reads {FORMAT:?} version {VERSION}: write it again",
                header.format, header.version
            )));
        }
        Ok(PlanFile {
            map: Arc::new(map),
            path: path.to_owned(),
            data: length + 8,
            layout,
            header,
        })
    }

    fn wrong(&self, reason: String) -> Error {
        Error::PlanFile {
            path: self.path.display().to_string(),
            reason,
        }
    }

    /// A part whose hash is right.
    fn part(&self, name: &str) -> Result<(&TensorInfo, &[u8])> {
        let info = self
            .layout
            .info(name)
            .ok_or_else(|| self.wrong(format!("it has no {name:?}")))?;
        let (start, end) = info.data_offsets;
        let bytes = self
            .map
            .get(self.data + start..self.data + end)
            .ok_or_else(|| self.wrong(format!("it ends before {name:?} does")))?;
        if self.header.sha256.get(name) != Some(&digest(info.dtype, &info.shape, bytes)) {
            return Err(self.wrong(format!("{name:?} is damaged: its hash is another")));
        }
        Ok((info, bytes))
    }

    /// Whether a part of that name exists.
    pub fn has(&self, name: &str) -> bool {
        self.layout.info(name).is_some()
    }

    /// A text, or other bytes.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn text(&self, name: &str) -> Result<&[u8]> {
        Ok(self.part(name)?.1)
    }

    /// The plan, checked.
    ///
    /// # Errors
    /// It is missing, damaged, or of another version of plans.
    pub fn plan(&self) -> Result<Plan> {
        Plan::from_bytes(self.text(PLAN)?).map_err(|error| self.wrong(error.to_string()))
    }

    /// A tensor, where it lies in the file.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn tensor(&self, name: &str) -> Result<FileTensor> {
        let (info, _) = self.part(name)?;
        let (start, end) = info.data_offsets;
        let dtype = element_type(info.dtype)
            .ok_or_else(|| self.wrong(format!("{name:?} is {:?}", info.dtype)))?;
        let shape = info
            .shape
            .iter()
            .map(|size| i32::try_from(*size))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| self.wrong(format!("{name:?} has sizes {:?}", info.shape)))?;
        let (map, offset) = (self.map.clone(), self.data + start);
        FileTensor::in_map(map, &self.path, offset, end - start, dtype, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lowering::plan::{PLAN_FORMAT, PLAN_VERSION};

    fn plan() -> Plan {
        Plan {
            format: PLAN_FORMAT.into(),
            version: PLAN_VERSION,
            architecture: "Nothing".into(),
            dtype: "float32".into(),
            layers: Vec::new(),
            state_layers: Vec::new(),
            sample: None,
            graphs: Vec::new(),
        }
    }

    fn contents() -> Contents {
        let tensor = HostTensor {
            dtype: DType::Float32,
            shape: vec![2],
            bytes: [1f32, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Contents {
            texts: [("manifest".to_owned(), b"{}".to_vec())].into(),
            tensors: [("table".to_owned(), tensor)].into(),
        }
    }

    fn file(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("vllm-metal-{}-{name}", std::process::id()));
        write(&path, &plan(), contents()).unwrap();
        path
    }

    fn refusal(path: &Path) -> String {
        let everything = || -> Result<()> {
            let file = PlanFile::open(path)?;
            file.plan()?;
            file.text("manifest")?;
            file.tensor("table").map(drop)
        };
        everything().unwrap_err().to_string()
    }

    #[test]
    fn what_was_written_is_read_and_the_bytes_are_always_the_same() {
        let (path, again) = (file("whole"), file("again"));
        let file = PlanFile::open(&path).unwrap();
        assert_eq!(file.plan().unwrap(), plan());
        assert_eq!(file.text("manifest").unwrap(), b"{}");
        let table = file.tensor("table").unwrap();
        assert_eq!(
            (table.bytes(), &table.shape[..]),
            (&contents().tensors["table"].bytes[..], &[2][..])
        );
        assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
        fs::remove_file(path).unwrap();
        fs::remove_file(again).unwrap();
    }

    #[test]
    fn every_truncation_and_every_changed_byte_is_found() {
        let path = file("damaged");
        let bytes = fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            refusal(&path);
        }
        for position in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[position] ^= 1;
            fs::write(&path, changed).unwrap();
            refusal(&path);
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn foreign_and_future_files_say_what_they_are() {
        let path = file("foreign");
        let views = [("x", TensorView::new(Dtype::U8, vec![1], &[0]).unwrap())];
        safetensors::serialize_to_file(views, None, &path).unwrap();
        assert!(refusal(&path).contains("a safetensors file without a plan"));
        let header = r#"{"format":"vllm-metal/plan-file","version":99,"sha256":{}}"#;
        let metadata = HashMap::from([(METADATA.to_owned(), header.to_owned())]);
        let views = [("x", TensorView::new(Dtype::U8, vec![1], &[0]).unwrap())];
        safetensors::serialize_to_file(views, Some(metadata), &path).unwrap();
        assert!(refusal(&path).contains("version 99, and this build reads"));
        fs::remove_file(&path).unwrap();
        assert!(refusal(&path).contains(&path.display().to_string()));
    }

    #[test]
    fn a_name_is_given_once() {
        let mut twice = contents();
        twice.texts.insert("table".to_owned(), Vec::new());
        let path = std::env::temp_dir().join(format!("vllm-metal-{}-twice", std::process::id()));
        let error = write(&path, &plan(), twice).unwrap_err().to_string();
        assert!(error.contains("two parts are called \"table\""), "{error}");
        assert!(!path.exists());
    }
}
