// One reading of one object, in a process of its own: fetch_contenders.py starts it. Prints one
// JSON line: what the reading took, without start, page population and the check of the bytes.
//
// usage: fetch_client raw URL [--connections 8] [--request-mib 8] [--passes 1]
//        fetch_client fetcher URL-OR-FILE [--connections 8] [--request-mib N] [--passes 1]
//                     [--layer-mib 64] [--budget-mib 256] [--hedge-percent 0]
//
//   raw      recv() into the final buffer, one thread per connection
//   fetcher  the product's Fetcher: one layer after the other into a ring of `budget` bytes, whose
//            slots are used again as soon as their layer is complete
//
// The object is fetch_contenders.py's file: the bytes are checked (bench_pattern.h).

#include <sys/mman.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/units.h"
#include "tests/bench/bench_pattern.h"
#include "tests/bench/raw_reading.h"
#include "weightmap/remote/fetcher.h"

namespace librarian::bench {
namespace {

namespace remote = weightmap::remote;
using Json = nlohmann::json;

// While the clock runs, only every so many bytes a word is looked at.
constexpr std::uint64_t kSampleStep = 64 * kKiB;

struct Options {
  std::string mode;
  std::string url;
  std::uint32_t connections = 8;
  std::uint64_t request_mib = 0;
  std::uint32_t passes = 1;
  std::uint64_t layer_mib = 64;
  std::uint64_t budget_mib = 256;
  double hedge_percent = 0;
};

// Pages that are there already: no reading pays for their first touch.
class Pages {
 public:
  static Result<Pages> populate(std::uint64_t bytes) {
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED) {
      return Error(ErrorCode::does_not_fit, "cannot map " + format_bytes(bytes) + ": " +
                                                std::strerror(errno) + "; ask for less");
    }
    return Pages({static_cast<std::byte*>(at), bytes});
  }
  Pages(Pages&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  Pages& operator=(Pages&&) = delete;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() {
    if (!bytes_.empty()) {
      static_cast<void>(::munmap(bytes_.data(), bytes_.size()));
    }
  }
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  explicit Pages(std::span<std::byte> bytes) : bytes_(bytes) {}
  std::span<std::byte> bytes_;
};

double wall_now_s() { return std::chrono::duration<double>(real_clock().now()).count(); }

double cpu_now_s() {
  rusage usage{};
  LIB_CHECK(::getrusage(RUSAGE_SELF, &usage) == 0);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// VmHWM: getrusage's figure begins with that of whoever started this program.
std::uint64_t peak_kib() {
  std::ifstream status("/proc/self/status");
  std::string word;
  std::uint64_t kib = 0;
  while (status >> word && word != "VmHWM:") {
  }
  status >> kib;
  return kib;
}

class Stopwatch {
 public:
  Json read(std::uint64_t bytes) const {
    return {{"wall_s", wall_now_s() - wall_begin_s_},
            {"cpu_s", cpu_now_s() - cpu_begin_s_},
            {"bytes", bytes},
            {"peak_kib", peak_kib()}};
  }

 private:
  double wall_begin_s_ = wall_now_s();
  double cpu_begin_s_ = cpu_now_s();
};

Result<void> check(std::span<const std::byte> bytes, std::uint64_t begin, std::uint64_t step) {
  if (const auto wrong = find_wrong(bytes.data(), begin, begin + bytes.size(), step)) {
    return Error(ErrorCode::corrupt, "the word at byte " + std::to_string(*wrong) +
                                         " is not the one that the bench file has there");
  }
  return {};
}

Result<Json> read_raw(const Options& options) {
  LIB_TRY(const RawObject object, parse_raw_url(options.url));
  LIB_TRY(const std::uint64_t object_bytes, raw_object_bytes(object));
  LIB_TRY(const Pages pages, Pages::populate(object_bytes));
  const std::uint64_t request_bytes = (options.request_mib == 0 ? 8 : options.request_mib) * kMiB;
  const Stopwatch watch;
  LIB_TRY(const std::uint64_t requests, bench::read_raw(object, options.connections, request_bytes,
                                                        options.passes, pages.bytes()));
  Json line = watch.read(object_bytes * options.passes);
  line["requests"] = requests;
  LIB_TRY_VOID(check(pages.bytes(), 0, 8));
  return line;
}

// Layers in the order in which they are needed, each read into the ring's next slot.
class LayerRing {
 public:
  struct Layer {
    std::uint64_t begin;
    std::uint64_t end;
    std::span<std::byte> slot;
    double submitted_s = 0;
    double complete_s = 0;
    std::uint64_t requests_left = 0;
  };
  // What had come by then, of requests under way as well.
  struct Mark {
    double at_s;
    std::uint64_t body_bytes;
  };

  LayerRing(remote::Fetcher& fetcher, remote::ObjectId object, const Options& options,
            std::span<std::byte> ring)
      : fetcher_(fetcher), object_(object), options_(options), ring_(ring) {}

  Result<void> read(std::uint64_t object_bytes) {
    const std::uint64_t layer_bytes = options_.layer_mib * kMiB;
    const std::uint64_t per_pass = (object_bytes + layer_bytes - 1) / layer_bytes;
    slots_ = ring_.size() / layer_bytes;
    for (std::uint64_t i = 0; i < per_pass * options_.passes; ++i) {
      const std::uint64_t begin = i % per_pass * layer_bytes;
      const std::uint64_t end = std::min(begin + layer_bytes, object_bytes);
      layers_.push_back({begin, end, ring_.subspan(i % slots_ * layer_bytes, end - begin)});
    }
    for (std::uint64_t i = 0; i < layers_.size(); ++i) {
      if (i >= slots_) {
        LIB_TRY_VOID(release(i - slots_));
      }
      submit(i);
    }
    for (std::uint64_t i = layers_.size() - std::min(slots_, layers_.size()); i < layers_.size();
         ++i) {
      LIB_TRY_VOID(release(i));
    }
    return {};
  }

  /// Every byte of the layers that are still in the ring.
  Result<void> check_all() const {
    for (std::uint64_t i = layers_.size() - std::min(slots_, layers_.size()); i < layers_.size();
         ++i) {
      LIB_TRY_VOID(check(layers_[i].slot, layers_[i].begin, 8));
    }
    return {};
  }

  /// From the submission of its requests to its last byte.
  std::vector<double> layer_seconds() const {
    std::vector<double> seconds;
    for (const Layer& layer : layers_) {
      seconds.push_back(layer.complete_s - layer.submitted_s);
    }
    return seconds;
  }

  /// While requests waited: without the start, in which an origin is sent few, and the end, in
  /// which connections run out of work. 0: too few layers to tell.
  double steady_bytes_per_s() const {
    const Mark& first = marks_[marks_.size() / 4];
    const Mark& last = marks_.back();
    return marks_.size() > 2 * slots_
               ? static_cast<double>(last.body_bytes - first.body_bytes) / (last.at_s - first.at_s)
               : 0;
  }

 private:
  std::uint64_t request_bytes(std::uint64_t layer_bytes) const {
    std::uint64_t wanted = fetcher_.sizes(object_).request_bytes;
    if (options_.request_mib != 0) {
      wanted = std::min(wanted, options_.request_mib * kMiB);
    }
    // Equal parts, whole words: a short last one would cost as much waiting as the others.
    const std::uint64_t count = (layer_bytes + wanted - 1) / wanted;
    return ((layer_bytes + count - 1) / count + 7) / 8 * 8;
  }

  void submit(std::uint64_t index) {
    Layer& layer = layers_[index];
    const std::uint64_t step = request_bytes(layer.end - layer.begin);
    marks_.push_back({wall_now_s(), fetcher_.statistics().body_bytes});
    {
      const std::scoped_lock lock(mutex_);
      layer.submitted_s = wall_now_s();
      layer.requests_left = (layer.end - layer.begin + step - 1) / step;
    }
    for (std::uint64_t begin = layer.begin; begin < layer.end; begin += step) {
      const std::uint64_t end = std::min(begin + step, layer.end);
      fetcher_.submit(
          {object_, {{{begin, end}, layer.slot.data() + (begin - layer.begin)}}, index},
          [this, &layer](const Result<remote::CrcRuns>& result) { landed(layer, result); });
    }
  }

  void landed(Layer& layer, const Result<remote::CrcRuns>& result) {
    const std::scoped_lock lock(mutex_);
    if (!result) {
      failure_ = result.error();
    }
    if (--layer.requests_left == 0) {
      layer.complete_s = wall_now_s();
    }
    changed_.notify_all();
  }

  Result<void> release(std::uint64_t index) {
    const Layer& layer = layers_[index];
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return failure_ || layer.requests_left == 0; });
    if (failure_) {
      return *failure_;
    }
    lock.unlock();
    return check(layer.slot, layer.begin, kSampleStep);
  }

  remote::Fetcher& fetcher_;
  const remote::ObjectId object_;
  const Options& options_;
  const std::span<std::byte> ring_;
  std::uint64_t slots_ = 0;
  std::vector<Layer> layers_;
  std::vector<Mark> marks_;  // At each layer's submission.
  std::mutex mutex_;         // Guards the layers' counts and times, and failure_.
  std::condition_variable changed_;
  std::optional<Error> failure_;
};

Result<Json> read_with_fetcher(const Options& options) {
  if (options.layer_mib == 0 || options.budget_mib < options.layer_mib) {
    return Error(ErrorCode::invalid_argument, "--budget-mib must hold a layer of --layer-mib");
  }
  LIB_TRY(const remote::Uri uri, remote::parse_uri(options.url));
  LIB_TRY(const Pages pages, Pages::populate(options.budget_mib * kMiB));
  const Stopwatch watch;
  remote::TransportOptions transport_options;
  transport_options.connections = options.connections;
  const auto transport = remote::make_transport(real_clock(), transport_options);
  std::optional<remote::Fetcher> fetcher;
  fetcher.emplace(*transport, real_clock(),
                  remote::FetcherOptions{.connections = options.connections,
                                         .retry = {},
                                         .hedge_budget = options.hedge_percent / 100,
                                         .jitter = {}});
  LIB_TRY(const auto opened, fetcher->open(uri, 1, {}));
  LayerRing ring(*fetcher, opened.id, options, pages.bytes());
  const auto result = ring.read(opened.info.size);
  Json line = watch.read(opened.info.size * options.passes);
  const remote::FetchStatistics statistics = fetcher->statistics();
  // Before the ring: until then, the fetcher may call it.
  fetcher.reset();
  LIB_TRY_VOID(result);
  LIB_TRY_VOID(ring.check_all());
  line["requests"] = statistics.requests;
  line["retries"] = statistics.retries;
  line["hedges"] = statistics.hedges;
  line["hedge_bytes"] = statistics.hedge_bytes;
  line["layer_s"] = ring.layer_seconds();
  line["steady_bytes_per_s"] = ring.steady_bytes_per_s();
  return line;
}

int run(int argc, char** argv) {
  Options options;
  CLI::App app("Reads one object once and prints what that took, as JSON.");
  app.add_option("mode", options.mode)->required()->check(CLI::IsMember({"raw", "fetcher"}));
  app.add_option("url", options.url, "http://127.0.0.1:PORT/PATH; fetcher: any place")->required();
  app.add_option("--connections", options.connections)->check(CLI::PositiveNumber);
  app.add_option("--request-mib", options.request_mib, "fetcher: at most; 0: what suits");
  app.add_option("--passes", options.passes, "times the object is read")
      ->check(CLI::PositiveNumber);
  app.add_option("--layer-mib", options.layer_mib);
  app.add_option("--budget-mib", options.budget_mib, "memory for layers, in slots");
  app.add_option("--hedge-percent", options.hedge_percent);
  CLI11_PARSE(app, argc, argv);
  const auto line = options.mode == "raw" ? read_raw(options) : read_with_fetcher(options);
  if (!line) {
    std::fprintf(stderr, "fetch_client: %s\n", line.error().message().c_str());
    return 1;
  }
  std::printf("%s\n", line->dump().c_str());
  return 0;
}

}  // namespace
}  // namespace librarian::bench

int main(int argc, char** argv) {
  try {
    return librarian::bench::run(argc, argv);
  } catch (const std::exception& stray) {  // Of a library; ours are values.
    std::fprintf(stderr, "fetch_client: %s\n", stray.what());
    return 1;
  }
}
