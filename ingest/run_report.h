#pragma once
/// What a run did: progress bar, performance test and regression check in one.

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "base/json.h"
#include "ingest/job_events.h"

namespace librarian::ingest {

/// The slowest of fetch, compute and encode-and-write of one layer sets its pace.
struct PaceBound {
  Duration bound{};          ///< First fetch + sum of the slowest stages + last write.
  Duration fetch_bound{};    ///< Of that, where the network was the slowest.
  Duration compute_bound{};  ///< Where compute (with loading) was.
  Duration write_bound{};    ///< Where encoding and writing was.
  /// "network", "compute" or "encode+write": who set most of it.
  std::string pacemaker() const;
};

/// Stage times of a layer; the bound is made of these.
struct LayerPace {
  Duration fetch{};    ///< Its bytes at the rate that the network showed over the run.
  Duration compute{};  ///< Loading and running, as measured.
  Duration write{};    ///< Its captures' bytes at the rate that encoding and writing showed.
};

/// @param layers  In order of one part.
PaceBound pace_bound(const std::vector<LayerPace>& layers);

struct RunReport {
  std::string tool_version;
  std::string started;  ///< UTC.
  std::string outcome;  ///< "complete", "already complete", "stopped" or the error's code.
  std::string model;
  std::string device_kind;
  int threads = 0;
  std::uint64_t parts_total = 0;
  std::uint64_t parts_done_here = 0;
  std::uint64_t tokens_done_here = 0;  ///< Tokens of parts finished by this process.
  std::uint64_t layer_tokens = 0;      ///< Tokens times layers that this process computed.

  Duration wall{};
  std::string staging;               ///< "disk" or "memory": where weights waited.
  std::uint64_t needed_bytes = 0;    ///< Of weights (of what whole files lacked, where staged on
                                     ///< disk) and of the skeleton.
  std::uint64_t skeleton_bytes = 0;  ///< Of the skeleton alone, its small files included.
  std::uint64_t fetched_bytes = 0;   ///< Bodies that the wire carried for all of it.
  std::uint64_t requests = 0;
  std::uint64_t retries = 0;
  std::uint64_t resolves = 0;     ///< Times a hub was asked where a file lies.
  std::uint64_t hedges = 0;       ///< Requests sent twice because they were late.
  std::uint64_t hedge_bytes = 0;  ///< Received twice for that.
  std::uint64_t raw_bytes = 0;
  std::uint64_t stored_bytes = 0;

  Duration fetch_busy{};
  Duration fetch_wait{};  ///< Compute waited for weights.
  Duration ring_wait{};   ///< The fetch waited for room.
  Duration load_busy{};
  Duration compute_busy{};
  Duration encode_busy{};  ///< Summed over threads.
  Duration write_busy{};
  Duration capture_wait{};  ///< Compute waited for encoder or disk.
  Duration commit_wait{};
  PaceBound bound;

  double compute_flops = 0;  ///< Floating-point operations done in compute_busy.
  double peak_flops = 0;     ///< What the device can do at most, per second, measured at the start.
  std::vector<std::string> products;       ///< See gpu_exec::Device::plan_products().
  std::uint64_t device_planned_bytes = 0;  ///< Of the device's own memory; 0: it has none.
  std::uint64_t memory_planned_bytes = 0;
  std::uint64_t memory_limit_bytes = 0;
  std::uint64_t resident_peak_bytes = 0;  ///< VmHWM of the process.
  std::string store_digest;  ///< XXH3-128 over the parts' array digests, once complete.

  Json to_json() const;
  /// For people: a handful of lines.
  std::string text() const;
};

/// VmHWM: the most memory this process ever had resident, in bytes; 0 if unknown.
std::uint64_t resident_peak_bytes();
/// VmRSS: what it has resident now.
std::uint64_t resident_bytes();

/// Appends `report` to DIR/report.json, a list of one entry per process, replaced by rename.
/// The caller holds DIR/.lock.
Result<void> append_report(FileSystem& files, const std::string& store_directory,
                           const RunReport& report);

}  // namespace librarian::ingest
