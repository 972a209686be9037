#include "weightmap/checkpoint.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "base/digest.h"
#include "weightmap/quantised_modules.h"
#include "weightmap/remote/fetcher.h"
#include "weightmap/tensor_names.h"
#include "weightmap/weight_files.h"

namespace librarian::weightmap {
namespace {

using gpu_exec::DType;

constexpr std::uint64_t kConfigBytesMax = 16U << 20U;
// Enough for the whole header of nearly every published file, so one request opens it.
constexpr std::uint64_t kHeadBytes = 128U << 10U;
constexpr std::size_t kOpenTogether = 64;
constexpr const char* kConfigName = "config.json";

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

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (const std::uint64_t extent : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return text + "]";
}

/// Length of the header from the file's head, and the header itself, fetching what is missing.
Result<std::string> read_header(remote::Fetcher& fetcher, const remote::Fetcher::Opened& opened,
                                const std::string& what, const std::stop_token& stop) {
  LIB_TRY(const std::uint64_t json_bytes, header_json_bytes(opened.head, opened.info.size, what));
  std::string header = opened.head.substr(kHeaderPrefixBytes, json_bytes);
  const std::size_t have = header.size();
  if (have < json_bytes) {
    header.resize(json_bytes);
    remote::FetchRequest rest{opened.id,
                              {{{kHeaderPrefixBytes + have, kHeaderPrefixBytes + json_bytes},
                                reinterpret_cast<std::byte*>(header.data() + have)}}};
    LIB_TRY_VOID(fetcher.fetch(std::move(rest), stop));
  }
  return header;
}

/// As the tensors lie in the files, but a table or head comes last: its rows need what else belongs
/// to the step. So do the codes of quantised matrices, which are decoded as they come, with scales
/// that are there already.
void sort_tensors(LayerPlan& plan) {
  std::sort(plan.tensors.begin(), plan.tensors.end(),
            [&plan](const WeightTensor& a, const WeightTensor& b) {
              const auto key = [&plan](const WeightTensor& tensor) {
                return std::tuple(tensor.role == gpu_exec::WeightRole::embedding ||
                                      tensor.role == gpu_exec::WeightRole::head,
                                  plan.is_codes(tensor), tensor.file, tensor.bytes.begin);
              };
              return key(a) < key(b);
            });
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

Result<Checkpoint> Checkpoint::open(remote::Fetcher& fetcher, const remote::Uri& directory,
                                    const std::stop_token& stop) {
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  LIB_TRY_VOID(checkpoint.read_config(fetcher, stop));
  LIB_TRY_VOID(checkpoint.read_headers(fetcher, stop));
  return checkpoint;
}

Result<void> Checkpoint::read_config(remote::Fetcher& fetcher, const std::stop_token& stop) {
  const remote::Uri uri = directory_.child(kConfigName);
  auto text = remote::read_object(fetcher, uri, kConfigBytesMax, stop);
  if (!text) {
    if (text.error().code() == ErrorCode::not_found) {
      return Error(ErrorCode::bad_input,
                   uri.display() + ": not there, so " + directory_.display() +
                       " is not a model directory; give the directory that holds config.json");
    }
    return text.error();
  }
  metadata_bytes_ += text->size();
  config_sha256_ = sha256_hex(*text);
  LIB_TRY(config_, parse_model_config(*text, uri.display()));
  return {};
}

Result<void> Checkpoint::read_headers(remote::Fetcher& fetcher, const std::stop_token& stop) {
  LIB_TRY(WeightFileList list, list_weight_files(fetcher, directory_, stop));
  index_sha256_ = list.index_sha256;
  metadata_bytes_ += list.index_bytes;

  std::vector<std::pair<std::uint32_t, TensorInfo>> tensors;
  const std::vector<std::string> ordered(list.names.begin(), list.names.end());
  for (std::size_t begin = 0; begin < ordered.size(); begin += kOpenTogether) {
    const std::size_t end = std::min(ordered.size(), begin + kOpenTogether);
    LIB_TRY_VOID(read_headers_of(fetcher, std::span(ordered).subspan(begin, end - begin), list,
                                 tensors, stop));
  }
  if (!index_sha256_.empty() && !list.file_of.empty()) {
    return Error(ErrorCode::bad_input, directory_.display() + ": the index says tensor '" +
                                           list.file_of.begin()->first + "' is in " +
                                           list.file_of.begin()->second + ", and it is not");
  }
  return plan_layers(std::move(tensors));
}

/// Opens files side by side and reads their headers.
/// @param list  Tensors that are found leave it.
Result<void> Checkpoint::read_headers_of(remote::Fetcher& fetcher,
                                         std::span<const std::string> names, WeightFileList& list,
                                         std::vector<std::pair<std::uint32_t, TensorInfo>>& tensors,
                                         const std::stop_token& stop) {
  LIB_TRY(const std::vector<remote::Fetcher::Opened> all,
          open_weight_files(fetcher, directory_, list, names, kHeadBytes, stop));
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string uri = directory_.child(names[i]).display();
    const remote::Fetcher::Opened& opened = all[i];
    LIB_TRY(const std::string header, read_header(fetcher, opened, uri, stop));
    metadata_bytes_ += kHeaderPrefixBytes + header.size();
    LIB_TRY(std::vector<TensorInfo> found, parse_safetensors_header(header, opened.info.size, uri));
    const auto file = static_cast<std::uint32_t>(files_.size());
    files_.push_back({names[i], opened.id, opened.info, sha256_hex(header)});
    for (TensorInfo& tensor : found) {
      const auto listed = list.file_of.find(tensor.name);
      if (!index_sha256_.empty() && (listed == list.file_of.end() || listed->second != names[i])) {
        return Error(ErrorCode::bad_input, uri + ": holds tensor '" + tensor.name +
                                               "', which the index does not expect there");
      }
      list.file_of.erase(tensor.name);
      tensors.emplace_back(file, std::move(tensor));
    }
  }
  return {};
}

const gpu_exec::LayerSpec& Checkpoint::layer_spec(std::int32_t layer) const {
  static const gpu_exec::LayerSpec no_layer;
  return layer >= 0 && layer < layer_count() ? spec().layers[static_cast<std::size_t>(layer)]
                                             : no_layer;
}

std::vector<gpu_exec::WeightRole> Checkpoint::roles_of(std::int32_t layer) const {
  if (layer == kEmbeddingLayer) {
    return gpu_exec::embedding_roles(spec());
  }
  return layer == layer_count() ? gpu_exec::final_roles(spec())
                                : gpu_exec::weight_roles(spec(), layer_spec(layer));
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

/// Takes the tensors of quantised matrices out of the usual way.
/// @return  For each tensor whether it was taken.
Result<std::vector<bool>> Checkpoint::plan_quantised(
    std::span<const std::pair<std::uint32_t, TensorInfo>> tensors, std::string_view prefix) {
  std::vector<bool> taken(tensors.size());
  if (!config_.quantisation) {
    return taken;
  }
  const std::int32_t layers = layer_count();
  for (const auto& [module, places] : find_quantised_modules(tensors)) {
    const NamedTensor named = classify_tensor(module + ".weight", config_.names, prefix, layers);
    if (named.kind == NamedTensor::Kind::head) {
      for (const std::size_t i : places) {  // As it is, its scales too.
        const auto& [file, tensor] = tensors[i];
        skeleton_.push_back({tensor.name, tensor.dtype, tensor.shape, file, tensor.bytes});
        taken[i] = true;
      }
      continue;
    }
    if (named.kind != NamedTensor::Kind::weight) {
      continue;  // Refused by its name with all others.
    }
    if (named.layer < 0 || named.layer >= layers || layer_spec(named.layer).transposed) {
      return Error(ErrorCode::bad_input, directory_.display() + ": '" + module +
                                             "' is quantised: built in for the layers' matrices "
                                             "only");
    }
    const std::vector<std::uint64_t> shape =
        gpu_exec::weight_shape(spec(), layer_spec(named.layer), named.role);
    if (shape.size() != 2) {
      return Error(ErrorCode::bad_input,
                   directory_.display() + ": '" + module + "' is quantised, and no matrix");
    }
    std::vector<ModuleTensor> found;
    for (const std::size_t i : places) {
      const TensorInfo& tensor = tensors[i].second;
      found.push_back(
          {std::string(split_module_name(tensor.name).suffix), tensor.dtype, tensor.shape});
    }
    auto described = describe_quantised(*config_.quantisation, found, shape[0], shape[1], module);
    if (!described) {
      return described.error().with_context(directory_.display());
    }
    LayerPlan& plan = layers_[static_cast<std::size_t>(named.layer) + 1];
    for (std::size_t i = 0; i < places.size(); ++i) {
      taken[places[i]] = true;
      if (described->tables.at(found[i].suffix) == QuantTable::unused) {
        continue;
      }
      const auto& [file, tensor] = tensors[places[i]];
      plan.bytes += tensor.bytes.size();
      weight_bytes_ += tensor.bytes.size();
      plan.tensors.push_back(
          {named.role, tensor.name, DType::f32, file, tensor.bytes, 1, found[i].suffix});
    }
    plan.quantised.emplace(named.role, *std::move(described));
    quantised_ = true;
  }
  return taken;
}

Result<void> Checkpoint::plan_layers(std::vector<std::pair<std::uint32_t, TensorInfo>> tensors) {
  const std::int32_t layers = layer_count();
  const NameScheme& scheme = config_.names;
  const std::string prefix = name_prefix(scheme, tensors);
  layers_.resize(static_cast<std::size_t>(layers) + 2);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].layer = static_cast<std::int32_t>(i) - 1;
  }
  std::array<std::uint64_t, 3> bytes_of_dtype{};
  std::set<std::pair<std::int32_t, gpu_exec::WeightRole>> present;
  LIB_TRY(const std::vector<bool> taken, plan_quantised(tensors, prefix));
  for (const LayerPlan& plan : layers_) {
    for (const auto& [role, module] : plan.quantised) {
      present.emplace(plan.layer, role);
    }
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (taken[i]) {
      continue;
    }
    auto& [file, tensor] = tensors[i];
    const NamedTensor named = classify_tensor(tensor.name, scheme, prefix, layers);
    const std::string where =
        directory_.child(files_[file].name).display() + ": tensor '" + tensor.name + "'";
    const bool outside = named.kind == NamedTensor::Kind::weight &&
                         (named.layer == kEmbeddingLayer || named.layer == layers);
    if (outside || (named.kind == NamedTensor::Kind::head && !is_tied_head(named, tensor.shape))) {
      skeleton_.push_back({tensor.name, tensor.dtype, tensor.shape, file, tensor.bytes});
    }
    if (named.kind == NamedTensor::Kind::unused || named.kind == NamedTensor::Kind::head) {
      continue;
    }
    const std::vector<gpu_exec::WeightRole> wanted = roles_of(named.layer);
    const bool needed = named.kind == NamedTensor::Kind::weight &&
                        std::find(wanted.begin(), wanted.end(), named.role) != wanted.end();
    if (!needed) {
      return Error(ErrorCode::bad_input,
                   where + " is not one that model_type '" + config_.model_type +
                       "' with this config.json uses; the model is not what its config says");
    }
    const std::optional<DType> dtype = compute_dtype(tensor.dtype);
    if (!dtype) {
      return Error(ErrorCode::bad_input,
                   where + " has dtype " + tensor.dtype + "; built in: BF16, F16, F32");
    }
    const std::vector<std::uint64_t> shape =
        gpu_exec::weight_shape(spec(), layer_spec(named.layer), named.role);
    if (tensor.shape != shape) {
      return Error(ErrorCode::bad_input, where + " has shape " + shape_text(tensor.shape) +
                                             " where config.json asks for " + shape_text(shape));
    }
    if (!present.emplace(named.layer, named.role).second) {
      return Error(ErrorCode::bad_input, where + " is there under another name, too");
    }
    bytes_of_dtype[static_cast<std::size_t>(*dtype)] += tensor.bytes.size();
    if (gpu_exec::dtype_bytes(*dtype) > gpu_exec::dtype_bytes(widest_dtype_)) {
      widest_dtype_ = *dtype;
    }
    LayerPlan& plan = layers_[static_cast<std::size_t>(named.layer) + 1];
    plan.bytes += tensor.bytes.size();
    weight_bytes_ += tensor.bytes.size();
    plan.tensors.push_back(
        {named.role, std::move(tensor.name), *dtype, file, tensor.bytes, shape.back()});
  }

  const auto require = [&](std::int32_t layer, gpu_exec::WeightRole role) -> Result<void> {
    if (present.contains({layer, role})) {
      return {};
    }
    return Error(ErrorCode::bad_input, directory_.display() + ": tensor '" +
                                           tensor_name(scheme, prefix, layer, role) +
                                           "' is missing from the checkpoint");
  };
  for (std::int32_t layer = kEmbeddingLayer; layer <= layers; ++layer) {
    for (const gpu_exec::WeightRole role : roles_of(layer)) {
      LIB_TRY_VOID(require(layer, role));
    }
  }

  std::sort(skeleton_.begin(), skeleton_.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  const auto commonest = std::max_element(bytes_of_dtype.begin(), bytes_of_dtype.end());
  commonest_dtype_ = static_cast<DType>(commonest - bytes_of_dtype.begin());
  for (LayerPlan& plan : layers_) {
    sort_tensors(plan);
  }
  return {};
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
  sort_tensors(layers_.back());
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
          return tensor.role == gpu_exec::WeightRole::embedding;  // Required when it was opened.
        });
    table.role = role;
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
