#include "gpu_exec/cuda_products.h"

#include <algorithm>
#include <utility>

#include "gpu_exec/cuda_probe.h"

namespace librarian::gpu_exec {
namespace {

/// Elements that begin where the library may read: 16 bytes of the narrower types.
bool in_units(std::uint64_t elements) { return elements % 8 == 0; }

std::string text_of(const ProductShape& shape, const ProductPlan& plan) {
  const char* engine = plan.engine == ProductPlan::Engine::library ? "cuBLASLt "
                       : plan.engine == ProductPlan::Engine::tensor_cores
                           ? "own kernel on tensor cores"
                           : "own kernel in f32";
  return std::string(shape.few_rows ? "experts, " : "") + dtype_name(shape.type) + " " +
         std::to_string(shape.inputs) + " to " + std::to_string(shape.outputs) + " " +
         dtype_name(shape.out) + (shape.w_transposed ? " transposed: " : ": ") + engine + plan.text;
}

}  // namespace

Result<std::vector<std::string>> CudaProducts::plan(std::span<const ProductSize> sizes, DType type,
                                                    std::uint64_t tile_outputs) {
  std::map<ProductShape, std::string> texts;
  for (const ProductSize& size : sizes) {
    // At once, or in tiles whose sums are finished apart: operations choose.
    for (const ProductShape& shape :
         {ProductShape{type, type, size.transposed, true, size.inputs, size.outputs, size.few_rows},
          ProductShape{type, DType::f32, size.transposed, true, size.inputs,
                       std::min(size.outputs, tile_outputs), size.few_rows},
          ProductShape{type, DType::f32, size.transposed, true, size.inputs,
                       size.outputs % tile_outputs, size.few_rows}}) {
      if (shape.outputs != 0) {
        LIB_TRY_VOID(plan_shape(shape));
        texts[shape] = text_of(shape, plans_.at(shape));
      }
    }
  }
  std::vector<std::string> all(texts.size());
  std::transform(texts.begin(), texts.end(), all.begin(),
                 [](const auto& entry) { return entry.second; });
  return all;
}

void CudaProducts::multiply(const CudaProduct& product) {
  const bool aligned =
      in_units(product.x_stride) && in_units(product.w_stride) && in_units(product.y_stride);
  const auto found = plans_.find({product.type, product.out, product.w_transposed, aligned,
                                  product.inputs, product.outputs, product.few_rows});
  const ProductPlan plan = found == plans_.end() ? own_plan(product.type) : found->second;
  if (plan.engine != ProductPlan::Engine::library) {
    runtime_.product(product, plan);
    return;
  }
  const std::uint64_t step = runtime_.library_rows();
  for (std::uint64_t row = 0; row < product.rows; row += step) {
    CudaProduct part = product;
    part.x += row * product.x_stride * dtype_bytes(product.type);
    part.y += row * product.y_stride * dtype_bytes(product.out);
    part.rows = step;
    runtime_.product(part, plan);
  }
}

ProductPlan CudaProducts::own_plan(DType type) const {
  ProductPlan plan;
  plan.engine =
      on_tensor_cores(type) ? ProductPlan::Engine::tensor_cores : ProductPlan::Engine::plain;
  return plan;
}

Result<void> CudaProducts::plan_shape(const ProductShape& shape) {
  if (plans_.contains(shape)) {
    return {};
  }
  ProductPlan plan = own_plan(shape.type);
  // The library computes its number of rows whatever there are; an expert often meets a tenth.
  if (!shape.few_rows && runtime_.library_rows() != 0 && in_units(shape.inputs) &&
      in_units(shape.outputs) && (shape.type == DType::f32 || on_tensor_cores(shape.type))) {
    ProductPlan library = runtime_.plan_product(shape);
    if (library.engine == ProductPlan::Engine::library) {
      LIB_TRY(const bool alike, rows_are_alike(runtime_, shape, library));
      if (alike) {
        plan = std::move(library);
      } else {
        plan.text = ", since cuBLASLt's " + library.text + " gives a row other bits elsewhere";
      }
    }
  }
  plans_.emplace(shape, std::move(plan));
  return {};
}

}  // namespace librarian::gpu_exec
