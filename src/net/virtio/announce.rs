//! What the guest's kernel says about its card: the device's side of the vhost-user protocol.
//!
//! The descriptors that come with it are the guest's choice. Memory whose size can change would kill us
//! with a signal, and not everything that can be waited for answers, so each is looked at first.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::rings::Rings;
use crate::net::addresses::GUEST_MAC;

/// What the card can do, by the bits of virtio 1.2, sections 5.1.3 and 6: checksums may be left to it
/// (0) and to the guest (1), it says its MTU (3) and its address (5), segments may be longer than that
/// (11, 12: nobody behind it has to cut them), and both sides say when they want to be woken (29).
const FEATURES: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 11 | 1 << 12 | EVENT_INDEX | 1 << 32;
const EVENT_INDEX: u64 = 1 << 29;

/// The answer to what the card never said that it could do.
const NOT_OFFERED: Error = Error::InvalidOperation("not offered");

impl Rings {
    fn queue(&mut self, index: u32) -> Result<&mut Queue> {
        self.queues.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    /// An address of the guest's kernel as one of its memory.
    fn place(&self, address: u64) -> Result<GuestAddress> {
        let inside = self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.user_addr)?;
            let place = region.guest_phys_addr.checked_add(offset)?;
            (offset < region.memory_size).then_some(GuestAddress(place))
        });
        inside.ok_or(Error::InvalidParam)
    }
}

impl VhostUserBackendReqHandlerMut for Rings {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.queues.iter_mut().for_each(|queue| queue.set_event_idx(features & EVENT_INDEX != 0));
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        // Acknowledgements would have the guest wait for each message; where one is wrong there is no
        // card any more.
        Ok(VhostUserProtocolFeatures::CONFIG)
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // `struct virtio_net_config` as far as the MTU: the address, a status, the number of pairs.
        let (pairs, mtu) = (1u16, u16::try_from(self.mtu).unwrap_or(u16::MAX));
        let config = [&GUEST_MAC[..], &[0; 2], &pairs.to_le_bytes(), &mtu.to_le_bytes()].concat();
        let byte = |at: u32| config.get(offset as usize + at as usize).copied().unwrap_or_default();
        Ok((0..size).map(byte).collect())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut mapped = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map_err(|errno| failed(errno.into()))?;
            if !SealFlag::from_bits_retain(seals).contains(SealFlag::F_SEAL_SHRINK) {
                return Err(failed(io::Error::other("the size of the guest's memory is not sealed")));
            }
            let end = region.mmap_offset.checked_add(region.memory_size);
            if end.is_none_or(|end| file.metadata().map_or(true, |file| file.len() < end)) {
                return Err(failed(io::Error::other("the guest's memory is longer than its file")));
            }
            let file = FileOffset::new(file, region.mmap_offset);
            let mapping = MmapRegion::from_file(file, region.memory_size as usize)
                .map_err(|error| failed(io::Error::other(error)))?;
            mapped.extend(GuestRegionMmap::new(mapping, GuestAddress(region.guest_phys_addr)));
        }
        let memory = GuestMemoryMmap::from_regions(mapped);
        self.memory = Some(memory.map_err(|error| failed(io::Error::other(error)))?);
        self.regions = regions.to_vec();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.queue(index)?.try_set_size(size).map_err(|_| Error::InvalidParam)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        let (descriptor, used, available) =
            (self.place(descriptor)?, self.place(used)?, self.place(available)?);
        let queue = self.queue(index)?;
        queue
            .try_set_desc_table_address(descriptor)
            .and_then(|()| queue.try_set_used_ring_address(used))
            .and_then(|()| queue.try_set_avail_ring_address(available))
            .map_err(|_| Error::InvalidParam)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        let queue = self.queue(index)?;
        queue.set_next_avail(base);
        queue.set_next_used(base);
        Ok(())
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = fd.ok_or(Error::IncorrectFds)?;
        let slot = self.kicks.get_mut(usize::from(index)).ok_or(Error::InvalidParam)?;
        let target = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(failed)?;
        if target.as_os_str() != "anon_inode:[eventfd]" {
            return Err(Error::IncorrectFds);
        }
        // That it was raised is all there is to know, so nobody reads it.
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, u64::from(index));
        self.epoll.add(&fd, event).map_err(|errno| failed(errno.into()))?;
        *slot = Some(fd);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let fd = fd.ok_or(Error::IncorrectFds)?;
        *self.calls.get_mut(usize::from(index)).ok_or(Error::InvalidParam)? = Some(fd);
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.queue(index)?.set_ready(enable);
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_vring_base(&mut self, _: u32) -> Result<VhostUserVringState> {
        Err(NOT_OFFERED)
    }

    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Err(NOT_OFFERED)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(NOT_OFFERED)
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(NOT_OFFERED)
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(NOT_OFFERED)
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}

fn failed(why: io::Error) -> Error {
    Error::ReqHandlerError(why)
}
