#pragma once
/// The type that activations are stored in is the one they were computed in.

#include "activation_store/types.h"
#include "base/error.h"
#include "gpu_exec/model_spec.h"

namespace librarian::ingest {

inline activation_store::StoredType stored_type(gpu_exec::DType type) {
  switch (type) {
    case gpu_exec::DType::bf16:
      return activation_store::StoredType::bf16;
    case gpu_exec::DType::f16:
      return activation_store::StoredType::f16;
    case gpu_exec::DType::f32:
      return activation_store::StoredType::f32;
  }
  LIB_CHECK(false);
}

}  // namespace librarian::ingest
