// What each tensor of the checkpoint is to which layer, and whether all of them are there.
#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "weightmap/checkpoint.h"
#include "weightmap/found_tensors.h"
#include "weightmap/quantised_modules.h"
#include "weightmap/tensor_names.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::DType;
using gpu_exec::WeightKey;
using gpu_exec::WeightRole;

std::optional<DType> compute_dtype(const std::string& name) {
  if (name == "BF16") {
    return DType::bf16;
  }
  if (name == "F16") {
    return DType::f16;
  }
  if (name == "F32") {
    return DType::f32;
  }
  return std::nullopt;
}

bool is_expert_bias(WeightRole role) {
  return role == WeightRole::expert_gate_bias || role == WeightRole::expert_up_bias ||
         role == WeightRole::expert_gate_up_bias || role == WeightRole::expert_down_bias;
}

/// As the tensors lie in the files, or by the stages that need them and then so. A table or head
/// comes last: its rows need what else belongs to the step. The codes of quantised matrices are
/// decoded as they come, with scales that are there already.
void sort_tensors(LayerPlan& plan, bool by_stage) {
  using Place = std::tuple<bool, std::uint32_t, bool, std::uint32_t, std::uint64_t>;
  std::vector<std::pair<Place, std::size_t>> places;
  for (std::size_t i = 0; i < plan.tensors.size(); ++i) {
    const WeightTensor& tensor = plan.tensors[i];
    const WeightRole role = tensor.key.role;
    places.emplace_back(Place(role == WeightRole::embedding || role == WeightRole::head,
                              by_stage ? plan.turn_of(tensor) : 0, plan.is_codes(tensor),
                              tensor.file, tensor.bytes.begin),
                        i);
  }
  std::sort(places.begin(), places.end());
  std::vector<WeightTensor> sorted;
  sorted.reserve(places.size());
  for (const auto& [place, index] : places) {
    sorted.push_back(std::move(plan.tensors[index]));
  }
  plan.tensors = std::move(sorted);
}

/// What this checkpoint puts before its names.
std::string name_prefix(const NameScheme& scheme,
                        const std::vector<std::pair<std::uint32_t, TensorInfo>>& tensors) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const auto& [file, tensor] : tensors) {
    names.emplace_back(tensor.name);
  }
  return base_prefix(scheme, names);
}

}  // namespace

std::uint32_t LayerPlan::turn_of(const WeightTensor& tensor) const {
  const std::uint32_t order = gpu_exec::stage_order(tensor.key);
  const bool small = tensor.suffix.empty() ? is_expert_bias(tensor.key.role) : !is_codes(tensor);
  return small ? std::min(order, 1U) : order;
}

const gpu_exec::LayerSpec& Checkpoint::layer_spec(std::int32_t layer) const {
  static const gpu_exec::LayerSpec no_layer;
  return layer >= 0 && layer < layer_count() ? spec().layers[static_cast<std::size_t>(layer)]
                                             : no_layer;
}

std::vector<WeightRole> Checkpoint::roles_of(std::int32_t layer) const {
  if (layer == kEmbeddingLayer) {
    return gpu_exec::embedding_roles(spec());
  }
  return layer == layer_count() ? gpu_exec::final_roles(spec())
                                : gpu_exec::weight_roles(spec(), layer_spec(layer));
}

std::vector<WeightKey> Checkpoint::keys_of(std::int32_t layer) const {
  if (layer >= 0 && layer < layer_count()) {
    return gpu_exec::weight_keys(spec(), layer_spec(layer));
  }
  const std::vector<WeightRole> roles = roles_of(layer);
  return {roles.begin(), roles.end()};
}

/// Some writers keep the matrix that config.json ties to the embedding a second time.
bool Checkpoint::is_tied_head(const NamedTensor& named,
                              const std::vector<std::uint64_t>& shape) const {
  return named.kind == NamedTensor::Kind::head && spec().head.tied &&
         shape == std::vector<std::uint64_t>{spec().vocab_size, spec().hidden_size};
}

std::uint64_t LayerPlan::table_bytes() const {
  std::uint64_t total = 0;
  for (const WeightTensor& tensor : tensors) {
    total += tensor.suffix.empty() || is_codes(tensor) ? 0 : tensor.bytes.size();
  }
  return total;
}

/// The matrix that the tensors of one module make up.
Result<void> Checkpoint::plan_module(const std::string& module,
                                     std::span<const FoundTensor* const> tensors) {
  const NamedTensor& named = tensors.front()->named;
  const auto refuse = [&](const std::string& reason) {
    return Error(ErrorCode::bad_input,
                 directory_.display() + ": '" + module + "' is quantised" + reason);
  };
  const gpu_exec::LayerSpec& layer = layer_spec(named.layer);
  std::vector<std::uint64_t> shape = gpu_exec::weight_shape(spec(), layer, named.key.role);
  const std::vector<WeightRole> wanted = roles_of(named.layer);
  if (std::find(wanted.begin(), wanted.end(), named.key.role) == wanted.end() ||
      named.key.expert >= experts_of(named.layer)) {
    return refuse(", and not one that model_type '" + config_.model_type +
                  "' with this config.json uses; the model is not what its config says");
  }
  if (shape.size() != 2) {
    return refuse(", and no matrix");
  }
  const bool transposed = gpu_exec::weight_transposed(layer, named.key.role);
  // Blocks lie as [outputs, inputs] whatever plain tensors of the family do.
  const bool in_blocks = tensors.front()->suffix == "weight_blocks";
  if (named.layer < 0 || named.layer >= layer_count() || (transposed && !in_blocks)) {
    return refuse(": built in for the layers' matrices only");
  }
  if (transposed) {
    std::swap(shape[0], shape[1]);
  }
  std::vector<ModuleTensor> found;
  found.reserve(tensors.size());
  for (const FoundTensor* tensor : tensors) {
    found.push_back({tensor->suffix, tensor->info.dtype, tensor->info.shape});
  }
  auto described = describe_quantised(*config_.quantisation, found, shape[0], shape[1], module);
  if (!described) {
    return described.error().with_context(directory_.display());
  }
  LayerPlan& plan = layers_[static_cast<std::size_t>(named.layer) + 1];
  for (const FoundTensor* tensor : tensors) {
    if (described->tables.at(tensor->suffix) == QuantTable::unused) {
      continue;
    }
    plan.bytes += tensor->info.bytes.size();
    weight_bytes_ += tensor->info.bytes.size();
    plan.tensors.push_back({named.key, tensor->info.name, DType::f32, tensor->file,
                            tensor->info.bytes, 1, tensor->suffix});
  }
  quantised_ = true;
  if (!plan.quantised.emplace(named.key, *std::move(described)).second) {
    return refuse(", and there under another name, too");
  }
  return {};
}

/// Takes the tensors of quantised matrices out of the usual way.
/// @return  For each tensor whether it was taken.
Result<std::vector<bool>> Checkpoint::plan_quantised(std::span<FoundTensor> tensors,
                                                     std::string_view prefix) {
  std::vector<bool> taken(tensors.size());
  if (!config_.quantisation) {
    return taken;
  }
  for (const auto& [module, places] : find_quantised_modules(tensors)) {
    NamedTensor named = tensors[places.front()].named;
    if (named.kind == NamedTensor::Kind::unknown) {
      named = classify_tensor(module + ".weight", config_.names, prefix, layer_count());
    }
    if (named.kind == NamedTensor::Kind::unknown) {
      continue;  // Refused by its name with all others.
    }
    std::vector<const FoundTensor*> parts;
    for (const std::size_t i : places) {
      tensors[i].named = named;
      parts.push_back(&tensors[i]);
      taken[i] = named.kind != NamedTensor::Kind::unused;
      if (named.kind == NamedTensor::Kind::head) {  // As it is, its scales too.
        const TensorInfo& info = tensors[i].info;
        skeleton_.push_back({info.name, info.dtype, info.shape, tensors[i].file, info.bytes});
      }
    }
    if (named.kind == NamedTensor::Kind::weight) {
      LIB_TRY_VOID(plan_module(module, parts));
    }
  }
  return taken;
}

std::uint32_t Checkpoint::experts_of(std::int32_t layer) const {
  return std::max<std::uint32_t>(layer_spec(layer).moe.experts, 1);
}

/// A tensor that is what the model computes with, of a type that it is computed in.
Result<void> Checkpoint::plan_plain(FoundTensor& tensor, std::string_view where) {
  const NamedTensor& named = tensor.named;
  const std::vector<WeightRole> wanted = roles_of(named.layer);
  const bool needed = named.kind == NamedTensor::Kind::weight &&
                      std::find(wanted.begin(), wanted.end(), named.key.role) != wanted.end() &&
                      named.key.expert < experts_of(named.layer);
  const auto refuse = [&](const std::string& reason) {
    return Error(ErrorCode::bad_input, std::string(where) + reason);
  };
  if (!needed) {
    return refuse(" is not one that model_type '" + config_.model_type +
                  "' with this config.json uses; the model is not what its config says");
  }
  const std::optional<DType> dtype = compute_dtype(tensor.info.dtype);
  if (!dtype) {
    return refuse(" has dtype " + tensor.info.dtype + "; built in: BF16, F16, F32");
  }
  const std::vector<std::uint64_t> shape =
      gpu_exec::weight_shape(spec(), layer_spec(named.layer), named.key.role);
  // Some writers keep a vector as a matrix of one row.
  const std::vector<std::uint64_t>& has = tensor.info.shape;
  const bool one_row = shape.size() == 1 && has.size() == 2 && has[0] == 1 && has[1] == shape[0] &&
                       named.key.role == WeightRole::router_select_bias;
  if (has != shape && !one_row) {
    return refuse(" has shape " + shape_text(has) + " where config.json asks for " +
                  shape_text(shape));
  }
  LayerPlan& plan = layers_[static_cast<std::size_t>(named.layer) + 1];
  const std::uint64_t bytes = tensor.info.bytes.size();
  bytes_of_dtype_[static_cast<std::size_t>(*dtype)] += bytes;
  // A vector is kept as f32 whatever it comes as.
  if (shape.size() > 1 && !gpu_exec::is_router_role(named.key.role) &&
      gpu_exec::dtype_bytes(*dtype) > gpu_exec::dtype_bytes(widest_dtype_)) {
    widest_dtype_ = *dtype;
  }
  plan.bytes += bytes;
  weight_bytes_ += bytes;
  plan.tensors.push_back({named.key, std::move(tensor.info.name), *dtype, tensor.file,
                          tensor.info.bytes, shape.back()});
  return {};
}

Result<void> Checkpoint::plan_layers(std::vector<std::pair<std::uint32_t, TensorInfo>> tensors) {
  const std::int32_t layers = layer_count();
  const NameScheme& scheme = config_.names;
  const std::string prefix = name_prefix(scheme, tensors);
  layers_.resize(static_cast<std::size_t>(layers) + 2);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].layer = static_cast<std::int32_t>(i) - 1;
  }
  LIB_TRY(std::vector<FoundTensor> found,
          find_tensors(tensors, scheme, prefix, spec(), [&](std::uint32_t file) {
            return directory_.child(files_[file].name).display();
          }));
  LIB_TRY(const std::vector<bool> taken, plan_quantised(found, prefix));
  std::set<std::pair<std::int32_t, WeightKey>> present;
  for (const LayerPlan& plan : layers_) {
    for (const auto& [key, module] : plan.quantised) {
      present.emplace(plan.layer, key);
    }
  }
  for (std::size_t i = 0; i < found.size(); ++i) {
    const NamedTensor named = found[i].named;
    const TensorInfo& info = found[i].info;
    const bool outside = named.kind == NamedTensor::Kind::weight &&
                         (named.layer == kEmbeddingLayer || named.layer == layers);
    if (!taken[i] &&
        (outside || (named.kind == NamedTensor::Kind::head && !is_tied_head(named, info.shape)))) {
      skeleton_.push_back({info.name, info.dtype, info.shape, found[i].file, info.bytes});
    }
    if (taken[i] || named.kind == NamedTensor::Kind::unused ||
        named.kind == NamedTensor::Kind::head) {
      continue;
    }
    const std::string where =
        directory_.child(files_[found[i].file].name).display() + ": tensor '" + info.name + "'";
    LIB_TRY_VOID(plan_plain(found[i], where));
    if (!present.emplace(named.layer, named.key).second) {
      return Error(ErrorCode::bad_input, where + " is there under another name, too");
    }
  }
  for (std::int32_t layer = kEmbeddingLayer; layer <= layers; ++layer) {
    for (const WeightKey& key : keys_of(layer)) {
      if (!present.contains({layer, key})) {
        return Error(ErrorCode::bad_input, directory_.display() + ": tensor '" +
                                               tensor_name(scheme, prefix, layer, key) +
                                               "' is missing from the checkpoint");
      }
    }
  }

  std::sort(skeleton_.begin(), skeleton_.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  const auto commonest = std::max_element(bytes_of_dtype_.begin(), bytes_of_dtype_.end());
  commonest_dtype_ = static_cast<DType>(commonest - bytes_of_dtype_.begin());
  for (LayerPlan& plan : layers_) {
    sort_tensors(plan, false);
  }
  return {};
}

void Checkpoint::order_by_stage() {
  for (LayerPlan& plan : layers_) {
    sort_tensors(plan, true);
  }
}

Result<void> Checkpoint::use_head() {
  if (config_.names.family->head.empty()) {
    return Error(ErrorCode::bad_input, directory_.display() + ": model_type '" +
                                           config_.model_type +
                                           "' has no head that predicts the next token, so there "
                                           "is no logits.topk; leave that capture out");
  }
  for (const gpu_exec::WeightRole role : gpu_exec::head_roles(spec())) {
    LIB_TRY_VOID(add_head_tensor(role));
  }
  sort_tensors(layers_.back(), false);
  return {};
}

Result<void> Checkpoint::add_head_tensor(gpu_exec::WeightRole role) {
  LayerPlan& plan = layers_.back();
  const auto add = [&](WeightTensor tensor) {
    plan.bytes += tensor.bytes.size();
    plan.tensors.push_back(std::move(tensor));
  };
  if (role == gpu_exec::WeightRole::head && spec().head.tied) {
    const std::vector<WeightTensor>& tensors = layers_.front().tensors;
    WeightTensor table =
        *std::find_if(tensors.begin(), tensors.end(), [](const WeightTensor& tensor) {
          return tensor.key.role ==
                 gpu_exec::WeightRole::embedding;  // Required when it was opened.
        });
    table.key = role;
    add(std::move(table));
    return {};
  }
  const auto found = std::find_if(skeleton_.begin(), skeleton_.end(), [&](const StoredTensor& one) {
    return is_head_name(one.name, config_.names, role);
  });
  if (found == skeleton_.end()) {
    const TensorNames& names = *config_.names.family;
    return Error(
        ErrorCode::bad_input,
        directory_.display() + ": tensor '" +
            std::string(role == gpu_exec::WeightRole::head ? names.head : names.head_bias) +
            "' is missing from the checkpoint, and logits.topk needs it");
  }
  const std::string where =
      directory_.child(files_[found->file].name).display() + ": tensor '" + found->name + "'";
  const std::optional<DType> dtype = compute_dtype(found->dtype);
  if (!dtype) {
    return Error(ErrorCode::bad_input,
                 where + " has dtype " + found->dtype + "; built in: BF16, F16, F32");
  }
  const std::vector<std::uint64_t> shape = gpu_exec::weight_shape(spec(), {}, role);
  if (found->shape != shape) {
    return Error(ErrorCode::bad_input, where + " has shape " + shape_text(found->shape) +
                                           " where config.json asks for " + shape_text(shape));
  }
  weight_bytes_ += found->bytes.size();
  add({role, found->name, *dtype, found->file, found->bytes, shape.back()});
  return {};
}

gpu_exec::DType Checkpoint::dtype() const {
  return config_.dtype.value_or(quantised_ ? DType::bf16 : commonest_dtype_);
}

const LayerPlan& Checkpoint::layer(std::int32_t layer) const {
  LIB_CHECK(layer >= kEmbeddingLayer && layer <= layer_count());
  return layers_[static_cast<std::size_t>(layer) + 1];
}

}  // namespace librarian::weightmap
