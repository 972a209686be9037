#include "gpu_exec/embedding.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "gpu_exec/layer_executor.h"

namespace librarian::gpu_exec {
namespace {

std::span<std::byte> bytes_of(std::span<float> values) { return std::as_writable_bytes(values); }

/// `value` as it is in `dtype`.
float rounded(float value, DType dtype) {
  std::byte narrow[sizeof(float)];
  const std::span<std::byte> there(narrow, dtype_bytes(dtype));
  convert_elements(DType::f32, std::as_bytes(std::span(&value, 1)), dtype, there);
  convert_elements(dtype, there, DType::f32, bytes_of(std::span(&value, 1)));
  return value;
}

}  // namespace

EmbeddingStage::EmbeddingStage(const ModelSpec& model, DType dtype, std::uint64_t rows_max)
    : model_(model), dtype_(dtype), rows_max_(rows_max), row_(model.hidden_size) {
  const EmbeddingSpec& spec = model.embedding;
  multiplier_ = spec.multiplier_in_dtype ? rounded(spec.multiplier, dtype) : spec.multiplier;
}

std::uint64_t EmbeddingStage::memory_bytes(const ModelSpec& model, std::uint64_t rows_max) {
  const std::uint64_t rows = 1 + (model.embedding.positions != 0 ? rows_max : 0) +
                             (model.embedding.types != 0 ? 1 : 0) + (model.embedding.norm ? 2 : 0);
  return rows * model.hidden_size * sizeof(float);
}

Result<void> EmbeddingStage::load(WeightRole role, DType type, std::span<const std::byte> bytes) {
  const std::vector<std::uint64_t> shape = weight_shape(model_, {}, role);
  const std::uint64_t rows = shape.size() == 2 ? shape[0] : 1;
  const std::uint64_t row_bytes = model_.hidden_size * dtype_bytes(type);
  if (bytes.size() != rows * row_bytes) {
    return Error(ErrorCode::invalid_argument, std::string(weight_role_name(role)) + ": " +
                                                  std::to_string(bytes.size()) + " bytes for " +
                                                  std::to_string(rows) + " rows");
  }
  std::vector<float>& to = role == WeightRole::position_embedding ? positions_
                           : role == WeightRole::type_embedding   ? type_
                           : role == WeightRole::embedding_norm   ? norm_
                                                                  : norm_bias_;
  std::uint64_t kept = 1;
  if (role == WeightRole::position_embedding) {
    const std::uint64_t offset = model_.embedding.position_offset;
    LIB_CHECK(offset < rows);
    bytes = bytes.subspan(offset * row_bytes);
    kept = std::min(rows_max_, rows - offset);
  }
  to.resize(kept * model_.hidden_size);
  convert_elements(type, bytes.first(kept * row_bytes), DType::f32, bytes_of(to));
  if (role == WeightRole::embedding_norm && model_.norm.one_plus) {
    std::for_each(to.begin(), to.end(), [](float& weight) { weight += 1; });
  }
  return {};
}

void EmbeddingStage::finish(DType type, std::span<const std::byte> word, std::uint64_t position,
                            std::span<std::byte> out) {
  convert_elements(type, word, DType::f32, bytes_of(row_));
  const EmbeddingSpec& spec = model_.embedding;
  const float* positions =
      spec.positions == 0 ? nullptr : positions_.data() + position * model_.hidden_size;
  LIB_CHECK(positions == nullptr || (position + 1) * model_.hidden_size <= positions_.size());
  for (std::uint32_t i = 0; i < model_.hidden_size; ++i) {
    double value = static_cast<double>(row_[i]) * multiplier_;
    value += positions == nullptr ? 0 : positions[i];
    value += spec.types == 0 ? 0 : type_[i];
    row_[i] = static_cast<float>(value);
  }
  if (spec.norm) {
    normalise();
  }
  convert_elements(DType::f32, std::as_bytes(std::span(row_)), dtype_, out);
}

void EmbeddingStage::normalise() {
  const double width = model_.hidden_size;
  double mean = 0;
  if (model_.norm.kind == NormKind::layer) {
    for (const float value : row_) {
      mean += value;
    }
    mean /= width;
  }
  double squares = 0;
  for (const float value : row_) {
    squares += (value - mean) * (value - mean);
  }
  const double inverse = 1 / std::sqrt(squares / width + model_.norm.epsilon);
  for (std::uint32_t i = 0; i < model_.hidden_size; ++i) {
    const double bias = norm_bias_.empty() ? 0 : norm_bias_[i];
    row_[i] = static_cast<float>((row_[i] - mean) * inverse * norm_[i] + bias);
  }
}

}  // namespace librarian::gpu_exec
