#pragma once
/// What a user asks of a job; the command line fills it.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "activation_store/types.h"
#include "base/clock.h"
#include "gpu_exec/cuda_device.h"
#include "gpu_exec/device.h"
#include "gpu_exec/model_spec.h"

namespace librarian::ingest {

enum class StateMode : std::uint8_t { automatic, memory, disk };
/// Where remote weights wait: as ranges in memory, or as whole files on a disk.
enum class StagingMode : std::uint8_t { automatic, memory, disk };

struct JobOptions {
  std::string model;   ///< Path or URI of the model directory.
  std::string tokens;  ///< Token file.
  std::string out;     ///< Store directory; empty only for plan.
  std::vector<std::string> captures{"resid_post@all"};
  std::optional<gpu_exec::DType> dtype;            ///< Absent: the checkpoint's.
  std::optional<gpu_exec::CudaOptions> cuda;       ///< Absent: the CPU.
  std::optional<gpu_exec::CpuIsa> isa;             ///< Absent: the best this machine runs.
  std::optional<std::uint64_t> host_memory_bytes;  ///< Absent: half of RAM or of the cgroup limit.
  std::uint64_t part_tokens = 0;                   ///< 0: auto, or as an existing job says.
  std::uint64_t block_tokens = 0;                  ///< 0: auto.
  StateMode state = StateMode::automatic;
  std::string scratch;  ///< Empty: <out>/scratch.
  Duration save_state_every = std::chrono::minutes(10);
  std::optional<std::uint64_t> disk_limit_bytes;
  StagingMode staging = StagingMode::automatic;
  std::string weights_cache;  ///< Directory that keeps staged files; empty: none.
  std::optional<std::uint64_t> cache_limit_bytes;  ///< Absent: what its disk has, less a margin.
  std::uint64_t max_length = 0;                    ///< 0: no limit.
  std::uint64_t num_samples = 0;                   ///< 0: all.
  activation_store::Codec codec = activation_store::Codec::zstd;
  std::uint64_t chunk_tokens = 0;  ///< 0: from the row's size.
  std::uint64_t shard_tokens = 0;  ///< 0: 512 chunks.
  int threads = 0;                 ///< 0: as many as the process may use.
  std::uint32_t connections = 16;
  std::uint64_t bandwidth_max = 0;   ///< Bytes per second from the network; 0: no limit.
  double hedge_budget = 0.01;        ///< Extra bytes per byte for requests sent twice.
  std::vector<std::string> headers;  ///< "Name: value" for the model's own server; may be secret.
  bool skeleton = true;              ///< Write <out>/model/ (skeleton.h).
  bool insecure_http = false;
  bool allow_nonfinite = false;
};

}  // namespace librarian::ingest
