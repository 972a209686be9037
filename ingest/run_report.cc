#include "ingest/run_report.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <fstream>

#include "base/units.h"

namespace librarian::ingest {
namespace {

constexpr std::uint64_t kReportBytesMax = 64U << 20U;
constexpr int kReportVersion = 1;

double seconds(Duration duration) { return std::chrono::duration<double>(duration).count(); }

std::string number(double value, const char* pattern) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), pattern, value);
  return text.data();
}

double ratio(double a, double b) { return b > 0 ? a / b : 0; }

/// A line of what the kernel says of this process, in bytes; 0 if it does not.
std::uint64_t memory_status_bytes(const char* name) {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word == name) {
      std::uint64_t kib = 0;
      status >> kib;
      return kib * kKiB;
    }
  }
  return 0;
}

}  // namespace

std::string PaceBound::pacemaker() const {
  if (compute_bound >= fetch_bound && compute_bound >= write_bound) {
    return "compute";
  }
  return fetch_bound >= write_bound ? "network" : "encode+write";
}

PaceBound pace_bound(const std::vector<LayerPace>& layers) {
  PaceBound bound;
  if (layers.empty()) {
    return bound;
  }
  // While layer i computes, layer i + 1 arrives and what layer i captured leaves.
  bound.fetch_bound = layers.front().fetch;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Duration fetch = i + 1 < layers.size() ? layers[i + 1].fetch : Duration{};
    const Duration write = i + 1 < layers.size() ? layers[i].write : Duration{};
    const Duration slowest = std::max({fetch, layers[i].compute, write});
    (slowest == layers[i].compute ? bound.compute_bound
     : slowest == fetch           ? bound.fetch_bound
                                  : bound.write_bound) += slowest;
  }
  bound.write_bound += layers.back().write;
  bound.bound = bound.fetch_bound + bound.compute_bound + bound.write_bound;
  return bound;
}

Json RunReport::to_json() const {
  return {
      {"version", kReportVersion},
      {"tool_version", tool_version},
      {"started", started},
      {"outcome", outcome},
      {"model", model},
      {"device_kind", device_kind},
      {"threads", threads},
      {"parts_total", parts_total},
      {"parts_done_here", parts_done_here},
      {"tokens_done_here", tokens_done_here},
      {"layer_tokens", layer_tokens},
      {"wall_ns", wall.count()},
      {"staging", staging},
      {"needed_bytes", needed_bytes},
      {"skeleton_bytes", skeleton_bytes},
      {"fetched_bytes", fetched_bytes},
      {"requests", requests},
      {"retries", retries},
      {"resolves", resolves},
      {"hedges", hedges},
      {"hedge_bytes", hedge_bytes},
      {"raw_bytes", raw_bytes},
      {"stored_bytes", stored_bytes},
      {"fetch_busy_ns", fetch_busy.count()},
      {"fetch_wait_ns", fetch_wait.count()},
      {"ring_wait_ns", ring_wait.count()},
      {"load_busy_ns", load_busy.count()},
      {"compute_busy_ns", compute_busy.count()},
      {"encode_busy_ns", encode_busy.count()},
      {"write_busy_ns", write_busy.count()},
      {"capture_wait_ns", capture_wait.count()},
      {"commit_wait_ns", commit_wait.count()},
      {"bound_ns", bound.bound.count()},
      {"bound_set_by", bound.pacemaker()},
      {"compute_flops", compute_flops},
      {"peak_flops_per_second", peak_flops},
      {"products", products},
      {"device_planned_bytes", device_planned_bytes},
      {"memory_planned_bytes", memory_planned_bytes},
      {"memory_limit_bytes", memory_limit_bytes},
      {"resident_peak_bytes", resident_peak_bytes},
      {"store_digest", store_digest},
  };
}

std::string RunReport::text() const {
  std::string out;
  const double flops_per_second = ratio(compute_flops, seconds(compute_busy));
  const auto line = [&](const std::string& name, const std::string& value) {
    std::string padded = name;
    padded.resize(16, ' ');
    out += "  " + padded + value + "\n";
  };
  const bool on_gpu = device_planned_bytes != 0;
  line("outcome", outcome + " (" + std::to_string(parts_done_here) + " of " +
                      std::to_string(parts_total) + " parts by this process) in " +
                      format_duration(wall));
  line("weights",
       format_bytes(fetched_bytes) + " fetched for " + format_bytes(needed_bytes) + " needed (" +
           number(ratio(static_cast<double>(fetched_bytes), static_cast<double>(needed_bytes)),
                  "%.3f") +
           "), " + format_count(requests) + " requests, " + format_count(retries) + " retries" +
           (hedges > 0 ? ", " + format_count(hedges) + " asked twice" : "") +
           (skeleton_bytes > 0 ? "; of it " + format_bytes(skeleton_bytes) + " for model/" : ""));
  line(
      "activations",
      format_bytes(raw_bytes) + " stored in " + format_bytes(stored_bytes) + " (" +
          number(ratio(static_cast<double>(raw_bytes), static_cast<double>(stored_bytes)), "%.2f") +
          "x)");
  line("compute", format_duration(compute_busy) + ", " + number(flops_per_second / 1e9, "%.0f") +
                      " GFLOP/s on " + device_kind +
                      (on_gpu ? "" : " with " + std::to_string(threads) + " threads"));
  if (flops_per_second > 0) {
    line("roofline", number(100 * ratio(flops_per_second, peak_flops), "%.0f") + " % of the " +
                         number(peak_flops / 1e9, "%.0f") + " GFLOP/s that " +
                         (on_gpu ? "this GPU reaches" : "these threads reach") +
                         " at most (measured at the start)");
  }
  line("stages", "fetch " + format_duration(fetch_busy) + ", load " + format_duration(load_busy) +
                     ", encode " + format_duration(encode_busy) + ", write " +
                     format_duration(write_busy));
  line("waits", "for weights " + format_duration(fetch_wait) + ", for encoder or disk " +
                    format_duration(capture_wait) + ", for commits " +
                    format_duration(commit_wait) + "; the fetch waited for room " +
                    format_duration(ring_wait));
  line("bound", format_duration(bound.bound) + ", set by " + bound.pacemaker() + "; the run took " +
                    number(ratio(seconds(wall), seconds(bound.bound)), "%.2f") + "x of it");
  if (on_gpu) {
    line("GPU memory", format_bytes(device_planned_bytes) + " for weights and workspace");
  }
  line("memory", format_bytes(memory_planned_bytes) + " planned of " +
                     format_bytes(memory_limit_bytes) + "; the process peaked at " +
                     format_bytes(resident_peak_bytes) + " resident");
  if (!store_digest.empty()) {
    line("store digest", store_digest);
  }
  return out;
}

std::uint64_t resident_peak_bytes() { return memory_status_bytes("VmHWM:"); }
std::uint64_t resident_bytes() { return memory_status_bytes("VmRSS:"); }

Result<void> append_report(FileSystem& files, const std::string& store_directory,
                           const RunReport& report) {
  const std::string path = store_directory + "/report.json";
  Json document = {{"librarian_report", kReportVersion}, {"runs", Json::array()}};
  auto text = read_small_file(files, path, kReportBytesMax);
  if (text) {
    // A report that cannot be read is replaced: it holds figures, not data.
    auto existing = parse_json(*text, path);
    if (existing && existing->contains("runs") && (*existing)["runs"].is_array()) {
      document["runs"] = (*existing)["runs"];
    }
  }
  document["runs"].push_back(report.to_json());
  return replace_file(files, path, document.dump(1) + "\n");
}

}  // namespace librarian::ingest
