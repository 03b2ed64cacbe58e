// SPDX-License-Identifier: Apache-2.0
// MLX's header gives bfloat the math functions that Metal lacks; here metal_stdlib has them.
#pragma once
