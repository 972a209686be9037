#pragma once
/// One part through all its layers: recover, run, commit, publish.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "activation_store/array_writer.h"
#include "activation_store/store_files.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file_system.h"
#include "gpu_exec/layer_executor.h"
#include "ingest/array_plan.h"
#include "ingest/capture_list.h"
#include "ingest/directory_lock.h"
#include "ingest/job_events.h"
#include "ingest/known_weights.h"
#include "ingest/part_journal.h"
#include "ingest/partition.h"
#include "ingest/residual_state.h"
#include "ingest/token_file.h"
#include "ingest/weight_loader.h"
#include "weightmap/virtual_weight_map.h"
#include "weightmap/weight_source.h"

namespace librarian::ingest {

/// What every part of a job shares. Plain references: the job owns it all and outlives its parts.
struct PartContext {
  Clock& clock;
  FileSystem& files;
  const weightmap::Checkpoint& checkpoint;
  const TokenData& tokens;
  const CaptureList& captures;
  KnownWeights& known_weights;
  JobObserver& observer;
  weightmap::WeightSource& weight_source;
  SourceRecord source;
  std::string identity_digest;
  std::string device_kind;
  std::vector<std::string> products;  ///< See gpu_exec::Device::plan_products().
  std::string store_directory;
  std::string scratch_root;  ///< Of this job; parts make their directories below it.
  std::uint64_t part_count = 0;
  gpu_exec::DType dtype{};
  activation_store::Codec codec{};
  std::uint64_t chunk_tokens = 0;
  std::uint64_t shard_tokens = 0;
  std::uint64_t block_tokens = 0;
  std::uint64_t blocks_together = 0;  ///< That meet a streamed layer at a time; 0: not streamed.
  bool state_in_memory = true;
  Duration save_state_every{};
  bool allow_nonfinite = false;
};

/// The machinery a part runs on; one set per job.
struct PartTools {
  weightmap::VirtualWeightMap& weights;
  weightmap::remote::Fetcher& fetcher;
  gpu_exec::LayerExecutor& executor;
  activation_store::EncodePool& encoder;
};

/// A part that this process holds. Not thread-safe.
class PartRun {
 public:
  /// Takes over the part's directory: reads its journal, cuts what is not finished, deletes what
  /// the journal does not know.
  /// @param lock  Held for the part's directory, which exists.
  /// @error corrupt | conflict | source_changed | io | no_space
  static Result<std::unique_ptr<PartRun>> open(const PartContext& context, std::uint64_t part,
                                               const activation_store::PartRange& range,
                                               std::unique_ptr<DirectoryLock> lock);
  ~PartRun();

  std::uint64_t part() const { return part_; }
  /// First layer that is not finished; above last_layer() if only publishing is left.
  std::int32_t first_layer() const;
  std::int32_t last_layer() const { return last_layer_; }
  /// How often a layer's weights are read: once, but streamed ones for each group of blocks.
  std::uint32_t readings(std::int32_t layer) const;

  /// Runs what is left and publishes the part.
  /// @param on_last_layer  Called once when nothing of this part is left to fetch, so that the job
  ///                       can let the next part's weights come meanwhile. Not called if only
  ///                       publishing is left.
  Result<void> run(const PartTools& tools, const std::function<Result<void>()>& on_last_layer,
                   const std::stop_token& stop);

 private:
  class Committer;
  class BlockIo;
  class HeadStep;
  struct LayerWork;

  PartRun(const PartContext& context, std::uint64_t part, const activation_store::PartRange& range,
          std::unique_ptr<DirectoryLock> lock);

  Result<void> recover();
  Result<void> recover_from_journal();
  void begin_again(const std::string& reason);
  void forget_layers(std::size_t kept);
  Result<void> cut_unfinished();
  Result<void> check_source();
  Result<void> start_journal();
  Result<void> write_tokens();
  Result<void> check_moved_source(const PartTools& tools, const std::stop_token& stop);
  Result<void> restore_state();

  Result<void> run_embedding(const PartTools& tools, LayerWork& work, const std::stop_token& stop);
  Result<void> run_layer(const PartTools& tools, WeightLoader& loader, LayerWork& work,
                         const std::stop_token& stop);
  Result<void> run_final_norm(const PartTools& tools, WeightLoader& loader, LayerWork& work,
                              const std::stop_token& stop);
  Result<void> write_final_norm(const PartTools& tools, LayerWork& work,
                                const std::stop_token& stop);
  Result<void> run_head(const PartTools& tools, WeightLoader& loader, LayerWork& work,
                        const std::stop_token& stop);
  std::vector<std::int64_t> topk_rows() const;
  Result<void> take_weights(const PartTools& tools, LayerWork& work, Duration& busy,
                            const std::function<Result<void>(const weightmap::ArrivedPiece&)>& use,
                            const std::stop_token& stop);
  Result<void> open_writers(const PartTools& tools, LayerWork& work);
  /// @param array  Gets the rows that this part keeps of it.
  Result<activation_store::ArrayWriter> open_writer(const PartTools& tools, PlannedArray& array);
  ArrayGeometry geometry() const;
  Result<void> prefetch_after(const PartTools& tools, std::int32_t layer);
  Result<void> check_finite(std::span<const std::byte> rows, gpu_exec::DType type,
                            const LayerWork& work, std::uint64_t row_begin) const;
  Error nonfinite_at(const std::string& where, std::int64_t row) const;
  Result<void> commit_now(LayerWork& work, const std::stop_token& stop);
  Result<void> publish(const std::stop_token& stop);
  const char* verified() const;
  Result<activation_store::FileRecord> write_weights_file();

  std::vector<std::uint32_t> row_positions() const;  ///< Of each row in its sample.
  std::string covering_array(std::int32_t layer) const;
  bool durable_state_due() const;

  const PartContext& context_;
  const std::uint64_t part_;
  const activation_store::PartRange range_;
  std::unique_ptr<DirectoryLock> lock_;
  const std::int32_t last_layer_;
  std::string directory_;
  std::string scratch_;
  std::string nonce_;
  std::vector<std::int64_t> offsets_;                           // Of this part's samples, from 0.
  std::map<std::string, std::vector<std::int64_t>> kept_rows_;  // By Positions::rows_name().
  std::vector<BlockRange> blocks_;
  PartProgress progress_;
  bool fresh_ = true;           // No journal yet.
  bool source_is_new_ = false;  // Finished layers came from a place we cannot tell is the same.
  std::optional<JournalWriter> journal_;
  std::unique_ptr<ResidualState> state_;
  TimePoint state_saved_{};
  std::vector<std::int32_t> not_saved_;  // Committed layers behind the last durable state.
  std::function<Result<void>()> on_last_layer_;
};

}  // namespace librarian::ingest
