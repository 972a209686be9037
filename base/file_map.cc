#include "base/file_map.h"

#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

namespace librarian {
namespace {

constexpr auto kXfsMagic = 0x58465342;  // linux/magic.h has no name for it

/// True where pages that were read stay as they are: a file system on other machines may take them
/// back, and the next access would then end the program where read_at() reports an error.
bool keeps_pages(int descriptor) {
  struct statfs status {};
  if (::fstatfs(descriptor, &status) != 0) {
    return false;
  }
  switch (status.f_type) {
    case EXT4_SUPER_MAGIC:
    case kXfsMagic:
    case BTRFS_SUPER_MAGIC:
    case TMPFS_MAGIC:
    case OVERLAYFS_SUPER_MAGIC:
      return true;
    default:
      return false;
  }
}

}  // namespace

std::shared_ptr<const FileMap> FileMap::of(int descriptor, std::uint64_t file_bytes) {
  if (file_bytes == 0 || !keeps_pages(descriptor)) {
    return nullptr;
  }
  void* const memory = ::mmap(nullptr, file_bytes, PROT_READ, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) {
    return nullptr;
  }
  return std::shared_ptr<const FileMap>(
      new FileMap({static_cast<std::byte*>(memory), static_cast<std::size_t>(file_bytes)}));
}

FileMap::~FileMap() { static_cast<void>(::munmap(memory_.data(), memory_.size())); }

std::optional<std::span<const std::byte>> FileMap::bytes(std::uint64_t offset,
                                                         std::uint64_t size) const {
  static const auto page_bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  if (size == 0 || size > memory_.size() || offset > memory_.size() - size) {
    return std::nullopt;
  }
  const std::uint64_t before = offset % page_bytes;
  std::byte* const begin = memory_.data() + offset - before;
  // What populating cannot read would end the program when it is touched; WILLNEED lets the disk
  // read all of it at once.
  static_cast<void>(::madvise(begin, before + size, MADV_WILLNEED));
  if (::madvise(begin, before + size, MADV_POPULATE_READ) != 0) {
    return std::nullopt;
  }
  return std::span<const std::byte>(begin + before, size);
}

}  // namespace librarian
