// SPDX-License-Identifier: Apache-2.0
//! How a model's parameters are put together from a checkpoint's tensors: strided copies, recorded
//! while vLLM's own loader ran (`vllm_metal.recipe`).

use super::pieces::{Piece, check, copy, zero};
use super::{Checkpoint, FileTensor, Source};
use crate::runtime::error::{Error, Result};
use crate::runtime::host::HostTensor;
use lowering::ir::DType;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Recipes of all parameters.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The checkpoint's tensors that are used, and what they must be.
    pub sources: BTreeMap<String, Kind>,
    /// By the path that the plan knows.
    pub parameters: BTreeMap<String, Parameter>,
}

/// Element type and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kind {
    pub dtype: DType,
    pub shape: Vec<usize>,
}

/// One parameter: pieces that are copied one after the other into zeros.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameter {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub pieces: Vec<Piece>,
}

fn elements(shape: &[usize]) -> Option<usize> {
    shape
        .iter()
        .try_fold(1usize, |total, size| total.checked_mul(*size))
}

impl Recipe {
    /// Reads the JSON text.
    ///
    /// # Errors
    /// It is malformed.
    pub fn from_json(text: &[u8]) -> Result<Recipe> {
        serde_json::from_slice(text)
            .map_err(|error| Error::Unsupported(format!("the weight recipe is malformed: {error}")))
    }

    /// The parameter of that path, put together; where it is one whole piece of a file, that piece.
    ///
    /// # Errors
    /// There is no recipe for it, the checkpoint lacks a tensor or has another than the recipe was
    /// recorded with, or a piece lies outside of its tensor.
    pub fn build(&self, path: &str, checkpoint: &Checkpoint) -> Result<Source> {
        let wrong = |reason: String| Error::Parameter {
            path: path.to_owned(),
            origin: String::new(),
            reason,
        };
        let parameter = self
            .parameters
            .get(path)
            .ok_or_else(|| wrong("the plan file has neither a tensor nor a recipe".to_owned()))?;
        let Parameter {
            dtype,
            shape,
            pieces,
        } = parameter;
        let size = elements(shape)
            .filter(|size| size.checked_mul(dtype.size()).is_some())
            .ok_or_else(|| wrong(format!("its sizes {shape:?} are too large")))?;
        let sizes = shape
            .iter()
            .map(|size| i32::try_from(*size))
            .collect::<std::result::Result<Vec<i32>, _>>()
            .map_err(|_| wrong(format!("its sizes {shape:?} are too large")))?;
        let mut sources = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let source = match &piece.source {
                Some(name) => Some(
                    self.source(name, checkpoint)
                        .map_err(|e| wrong(e.to_string()))?,
                ),
                None => None,
            };
            check(piece, source.as_ref(), size).map_err(wrong)?;
            sources.push(source);
        }
        if let ([piece], [Some(source)]) = (&pieces[..], &sources[..])
            && source.dtype == *dtype
            && elements(&piece.shape) == Some(size)
            && piece.to.offset == 0
            && piece.to.is_row_major(&piece.shape)
            && piece.from.is_row_major(&piece.shape)
        {
            let first = piece.from.offset * dtype.size();
            return Ok(Source::File(source.part(first, *dtype, sizes)?));
        }
        let covered: Option<usize> = pieces.iter().map(|piece| elements(&piece.shape)).sum();
        if covered.is_none_or(|covered| covered < size) {
            return Err(wrong(format!(
                "its pieces leave some of {size} elements out"
            )));
        }
        let mut bytes = vec![0; size * dtype.size()];
        for (piece, source) in pieces.iter().zip(&sources) {
            match source {
                Some(source) => copy(piece, source, *dtype, &mut bytes).map_err(wrong)?,
                None => zero(piece, *dtype, &mut bytes),
            }
        }
        Ok(Source::Host(HostTensor {
            dtype: *dtype,
            shape: sizes,
            bytes,
        }))
    }

    fn source(&self, name: &str, checkpoint: &Checkpoint) -> Result<FileTensor> {
        let tensor = checkpoint.tensor(name)?;
        let found = Kind {
            dtype: tensor.dtype,
            shape: tensor.shape.iter().map(|size| *size as usize).collect(),
        };
        match self.sources.get(name) {
            Some(expected) if *expected == found => Ok(tensor),
            expected => Err(Error::WeightFile {
                path: tensor.path.display().to_string(),
                reason: format!(
                    "tensor {name:?} is {}{:?}, and the plan was written for {}: these are not its weights",
                    found.dtype,
                    found.shape,
                    expected.map_or_else(
                        || "none".to_owned(),
                        |kind| format!("{}{:?}", kind.dtype, kind.shape)
                    )
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};
    use std::path::PathBuf;

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A checkpoint with the float32 tensor `x` `[4, 3]` of 0, 1, .. 11.
    fn checkpoint(name: &str) -> (Folder, Checkpoint) {
        let path = std::env::temp_dir().join(format!("vllm-metal-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let bytes: Vec<u8> = (0..12).flat_map(|v| (v as f32).to_le_bytes()).collect();
        let views = [(
            "x",
            TensorView::new(Dtype::F32, vec![4, 3], &bytes).unwrap(),
        )];
        safetensors::serialize_to_file(views, None, &path.join("m.safetensors")).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        (Folder(path), checkpoint)
    }

    fn recipe(parameter: &str) -> Recipe {
        let text = format!(
            r#"{{"sources": {{"x": {{"dtype": "float32", "shape": [4, 3]}}}}, "parameters": {{"p": {parameter}}}}}"#
        );
        Recipe::from_json(text.as_bytes()).unwrap()
    }

    fn floats(source: Source) -> Vec<f32> {
        let bytes = match source {
            Source::Host(tensor) => tensor.bytes,
            Source::File(tensor) => tensor.bytes().to_vec(),
            Source::Tensor(_) => panic!("built from a file"),
        };
        let words = bytes.as_chunks::<4>().0;
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    const PARTS: &str = r#"{"dtype": "float32", "shape": [3, 4], "pieces": [
        {"source": "x", "shape": [3, 2], "from": {"offset": 6, "strides": [1, 3]}, "to": {"offset": 0, "strides": [4, 1]}},
        {"source": null, "shape": [3, 2], "from": {"offset": 0, "strides": [0, 0]}, "to": {"offset": 2, "strides": [4, 1]}},
        {"source": "x", "shape": [], "from": {"offset": 11, "strides": []}, "to": {"offset": 11, "strides": []}}]}"#;

    #[test]
    fn pieces_are_cut_transposed_padded_and_laid_over_each_other() {
        let (_folder, checkpoint) = checkpoint("pieces");
        let built = floats(recipe(PARTS).build("p", &checkpoint).unwrap());
        let expected = [6., 9., 0., 0., 7., 10., 0., 0., 8., 11., 0., 11.];
        assert_eq!(built, expected);
    }

    #[test]
    fn a_whole_slice_of_a_file_is_used_where_it_lies() {
        let (_folder, checkpoint) = checkpoint("slice");
        let text = r#"{"dtype": "float32", "shape": [2, 3], "pieces": [
            {"source": "x", "shape": [2, 3], "from": {"offset": 3, "strides": [3, 1]}, "to": {"offset": 0, "strides": [3, 1]}}]}"#;
        let built = recipe(text).build("p", &checkpoint).unwrap();
        assert!(matches!(built, Source::File(_)));
        assert_eq!(floats(built), [3., 4., 5., 6., 7., 8.]);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let (_folder, checkpoint) = checkpoint("refused");
        let refusal = |text: String| {
            recipe(&text)
                .build("p", &checkpoint)
                .err()
                .unwrap()
                .to_string()
        };
        let outside = refusal(PARTS.replace(
            r#""offset": 11, "strides": []}, "to""#,
            r#""offset": 12, "strides": []}, "to""#,
        ));
        assert!(
            outside.contains("\"p\"") && outside.contains("outside of the 12 elements of \"x\""),
            "{outside}"
        );
        assert!(
            refusal(PARTS.replace(r#"to": {"offset": 2"#, r#"to": {"offset": 3"#))
                .contains("outside of its 12 elements")
        );
        assert!(
            refusal(PARTS.replace(r#""strides": [1, 3]"#, r#""strides": [1]"#)).contains("outside")
        );
        assert!(
            refusal(PARTS.replace(r#""offset": 6"#, r#""offset": 18446744073709551615"#))
                .contains("outside")
        );
        assert!(
            refusal(PARTS.replace("[3, 4]", "[3, 5]")).contains("leave some of 15 elements out")
        );
        assert!(
            refusal(PARTS.replace("\"source\": \"x\"", "\"source\": \"y\""))
                .contains("no file has a tensor \"y\"")
        );
        assert!(
            refusal(PARTS.replace(
                r#"{"dtype": "float32", "shape": [3, 4]"#,
                r#"{"dtype": "int32", "shape": [3, 4]"#
            ))
            .contains("floats cannot become int32")
        );
        let other = Recipe {
            sources: [(
                "x".to_owned(),
                Kind {
                    dtype: DType::Float16,
                    shape: vec![4, 3],
                },
            )]
            .into(),
            ..recipe(PARTS)
        };
        let error = other.build("p", &checkpoint).err().unwrap().to_string();
        assert!(error.contains("these are not its weights"), "{error}");
        let error = recipe(PARTS)
            .build("q", &checkpoint)
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("neither a tensor nor a recipe"), "{error}");
    }
}
