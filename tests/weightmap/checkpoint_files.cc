#include "tests/weightmap/checkpoint_files.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "weightmap/safetensors_header.h"

namespace librarian::weightmap::testing {
namespace {

std::string safetensors(const std::vector<FileTensor>& tensors) {
  Json header = Json::object();
  std::string data;
  for (const FileTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  std::string json = header.dump();
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + json + data;
}

}  // namespace

CheckpointFiles CheckpointFiles::tiny(const ingest::testing::TinyModelOptions& options) {
  return of(ingest::testing::tiny_model(options));
}

CheckpointFiles CheckpointFiles::read(const std::string& directory) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    std::ostringstream text;
    text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    contents[entry.path().filename().string()] = text.str();
  }
  return of(contents);
}

CheckpointFiles CheckpointFiles::of(const std::map<std::string, std::string>& contents) {
  CheckpointFiles result;
  for (const auto& [name, text] : contents) {
    if (name == "config.json") {
      result.config = Json::parse(text);
      continue;
    }
    if (!name.ends_with(".safetensors")) {
      continue;
    }
    std::uint64_t length = 0;
    std::memcpy(&length, text.data(), sizeof length);
    const auto tensors = parse_safetensors_header(text.substr(8, length), text.size(), name);
    LIB_CHECK(tensors.has_value());
    for (const TensorInfo& info : *tensors) {
      result.files[name].push_back(
          {info.name, info.dtype, info.shape, text.substr(info.bytes.begin, info.bytes.size())});
      result.index[info.name] = name;
    }
  }
  return result;
}

FileTensor& CheckpointFiles::tensor(const std::string& name) {
  for (auto& [file, tensors] : files) {
    for (FileTensor& tensor : tensors) {
      if (tensor.name == name) {
        return tensor;
      }
    }
  }
  LIB_CHECK(false);
}

FileTensor CheckpointFiles::take(const std::string& name) {
  for (auto& [file, tensors] : files) {
    for (auto tensor = tensors.begin(); tensor != tensors.end(); ++tensor) {
      if (tensor->name == name) {
        FileTensor taken = *tensor;
        tensors.erase(tensor);
        return taken;
      }
    }
  }
  LIB_CHECK(false);
}

std::map<std::string, std::string> CheckpointFiles::contents() const {
  std::map<std::string, std::string> result{{"config.json", config.dump()}};
  for (const auto& [name, tensors] : files) {
    result[name] = safetensors(tensors);
  }
  if (!index.empty()) {
    Json map = Json::object();
    for (const auto& [tensor, file] : index) {
      map[tensor] = file;
    }
    result["model.safetensors.index.json"] = Json({{"weight_map", map}}).dump();
  }
  return result;
}

OpenedCheckpoint::OpenedCheckpoint(std::map<std::string, std::string> from)
    : contents(std::move(from)),
      transport(contents),
      fetcher(transport, real_clock(), {}),
      checkpoint(Checkpoint::open(fetcher, *remote::parse_uri(ingest::testing::kModelUri), {})) {}

}  // namespace librarian::weightmap::testing
