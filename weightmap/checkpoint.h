#pragma once
/// A model directory, local or remote, understood and checked: what each byte of it means.

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "base/error.h"
#include "weightmap/found_tensors.h"
#include "weightmap/model_config.h"
#include "weightmap/quantisation.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/safetensors_header.h"
#include "weightmap/weight_files.h"

namespace librarian::weightmap {

/// One weight file of the checkpoint.
struct WeightFile {
  std::string name;
  remote::ObjectId object = 0;
  remote::ObjectInfo info;
  std::string header_sha256;  ///< Over the header JSON as it lies in the file.
};

/// Where one tensor that the model uses lies.
struct WeightTensor {
  gpu_exec::WeightKey key{};
  std::string name;  ///< "NAME[3]": an expert's part of the tensor that holds all experts'.
  gpu_exec::DType dtype{};
  std::uint32_t file = 0;  ///< Index into Checkpoint::files.
  remote::ByteRange bytes;
  std::uint64_t columns = 1;  ///< Elements of one row (the last dimension).
  /// Of a quantised matrix's tensors, see quantisation.h; empty: a plain tensor of `dtype`.
  std::string suffix{};
};

/// A tensor as it lies in its file, whatever it is for.
struct StoredTensor {
  std::string name;
  std::string dtype;  ///< As the file's header writes it.
  std::vector<std::uint64_t> shape;
  std::uint32_t file = 0;  ///< Index into Checkpoint::files.
  remote::ByteRange bytes;
};

/// Layers are numbered as in the journal: -1 is the embedding, 0..L-1 the layers, L what follows.
inline constexpr std::int32_t kEmbeddingLayer = -1;

/// What one step of a pass needs, in the order it is fetched: as it lies in the files, except that
/// the embedding table comes behind everything else of its step.
struct LayerPlan {
  std::int32_t layer = kEmbeddingLayer;
  std::vector<WeightTensor> tensors;
  std::uint64_t bytes = 0;  ///< Sum over tensors.
  /// Matrices that are quantised. Their codes come behind their other tensors, which are small.
  std::map<gpu_exec::WeightKey, QuantisedModule> quantised{};

  bool is_codes(const WeightTensor& tensor) const {
    return !tensor.suffix.empty() &&
           quantised.at(tensor.key).tables.at(tensor.suffix) == QuantTable::codes;
  }
  /// gpu_exec::stage_order() of the first stage that a tensor comes for. What matrices of the MLP
  /// or of experts need besides is small, and comes with the first of them.
  std::uint32_t turn_of(const WeightTensor& tensor) const;
  /// What is kept of quantised matrices until their codes come: bytes of all their other tensors.
  std::uint64_t table_bytes() const;
};

/// Immutable once opened; safe to read from any thread.
class Checkpoint {
 public:
  /// Fetches config.json, the index (or the one model.safetensors) and every header, and checks
  /// them against each other: each tensor that the model needs is there once, with the right
  /// shape and a dtype we have, and nothing is there that we do not know.
  /// @error bad_input    Says which file, key or tensor.
  /// @error unavailable | cancelled
  static Result<Checkpoint> open(remote::Fetcher& fetcher, const remote::Uri& directory,
                                 const std::stop_token& stop);

  const ModelConfig& config() const { return config_; }
  const gpu_exec::ModelSpec& spec() const { return config_.spec; }
  const remote::Uri& directory() const { return directory_; }
  const std::vector<WeightFile>& files() const { return files_; }
  const std::string& config_sha256() const { return config_sha256_; }
  /// Empty if the checkpoint is one file without an index.
  const std::string& index_sha256() const { return index_sha256_; }
  /// config.json's type, else the type that most weight bytes have.
  gpu_exec::DType dtype() const;
  /// Widest type among the matrices, but for routers (see gpu_exec::is_router_role()).
  gpu_exec::DType widest_dtype() const { return widest_dtype_; }
  /// Whether any matrix of a layer is quantised: it is decoded to the type of the computation.
  bool quantised() const { return quantised_; }

  /// @param layer  kEmbeddingLayer to L; L is the final norm, and empty if there is none.
  const LayerPlan& layer(std::int32_t layer) const;
  std::int32_t layer_count() const { return static_cast<std::int32_t>(spec().layers.size()); }
  /// Makes the head part of layer L, behind its other tensors: for jobs that want logits. Once,
  /// before anybody else looks.
  /// @error bad_input  The family has no head, or the checkpoint's is missing or of another shape.
  Result<void> use_head();
  /// Puts each layer's tensors in the order in which stages need them, turn_of(), and only within
  /// that as they lie in the files: for layers that are streamed. Before anybody else looks.
  void order_by_stage();
  /// What lies outside the layers: embeddings and their norm, final norm, heads; by name. A head
  /// that config.json ties to the embedding is not among them.
  const std::vector<StoredTensor>& skeleton() const { return skeleton_; }
  std::uint64_t weight_bytes() const { return weight_bytes_; }
  /// Requests sent so far do not count here: bytes of headers and JSON, for `plan`.
  std::uint64_t metadata_bytes() const { return metadata_bytes_; }

 private:
  Result<void> read_config(remote::Fetcher& fetcher, const std::stop_token& stop);
  Result<void> read_headers(remote::Fetcher& fetcher, const std::stop_token& stop);
  Result<void> read_headers_of(remote::Fetcher& fetcher, std::span<const std::string> names,
                               WeightFileList& list,
                               std::vector<std::pair<std::uint32_t, TensorInfo>>& tensors,
                               const std::stop_token& stop);
  bool is_tied_head(const NamedTensor& named, const std::vector<std::uint64_t>& shape) const;
  const gpu_exec::LayerSpec& layer_spec(std::int32_t layer) const;
  std::vector<gpu_exec::WeightRole> roles_of(std::int32_t layer) const;
  std::vector<gpu_exec::WeightKey> keys_of(std::int32_t layer) const;
  std::uint32_t experts_of(std::int32_t layer) const;
  Result<void> add_head_tensor(gpu_exec::WeightRole role);
  Result<void> plan_module(const std::string& module, std::span<const FoundTensor* const> tensors);
  Result<std::vector<bool>> plan_quantised(std::span<FoundTensor> tensors, std::string_view prefix);
  Result<void> plan_plain(FoundTensor& tensor, std::string_view where);
  Result<void> plan_layers(std::vector<std::pair<std::uint32_t, TensorInfo>> tensors);

  remote::Uri directory_;
  ModelConfig config_;
  std::string config_sha256_;
  std::string index_sha256_;
  std::vector<WeightFile> files_;
  std::vector<LayerPlan> layers_;  // [0] is the embedding
  std::vector<StoredTensor> skeleton_;
  std::array<std::uint64_t, 3> bytes_of_dtype_{};
  gpu_exec::DType widest_dtype_ = gpu_exec::DType::bf16;
  gpu_exec::DType commonest_dtype_ = gpu_exec::DType::bf16;
  bool quantised_ = false;
  std::uint64_t weight_bytes_ = 0;
  std::uint64_t metadata_bytes_ = 0;
};

}  // namespace librarian::weightmap
