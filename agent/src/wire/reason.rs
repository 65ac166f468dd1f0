//! Why a frame was not written: the one table of reasons, for counters, manifests, metrics and quarantine comments.
//! A drop is a frame that belonged to us; an ignored frame never did. Names are stable: operators' dashboards hold them.

/// Declares an enum whose variants have a stable name each, a dense index and a list of all.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$why:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$why])* $variant,)+ }

        impl $name {
            /// Every reason, in the order of its index.
            pub const ALL: [Self; [$(Self::$variant),+].len()] = [$(Self::$variant),+];

            /// The stable name used in counters, manifests and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The place of this reason in [`Self::ALL`].
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

reasons! {
    /// Why a frame for us was not written. The first group is malformed and goes to quarantine; the second is policy.
    Drop {
        /// The outer IP header is cut short.
        OuterIpShort = "outer_ip_short",
        /// The outer IP version does not match the EtherType.
        OuterIpVersion = "outer_ip_version",
        /// The outer IP header length is impossible.
        OuterIpHeader = "outer_ip_hdr",
        /// The outer IP total length is less than its header.
        OuterIpLength = "outer_ip_len",
        /// The outer packet is an IP fragment: the rest of the tunnel headers may be elsewhere.
        OuterFragment = "outer_fragment",
        /// The outer UDP header is cut short or its length is less than 8.
        OuterUdpLength = "outer_udp_len",
        /// Fewer than 8 bytes of GENEVE.
        GeneveShort = "geneve_short",
        /// GENEVE version is not 0 (RFC 8926 3.4: MUST drop).
        GeneveVersion = "geneve_version",
        /// Option length runs past the datagram.
        GeneveOptLen = "geneve_optlen",
        /// An option overruns the options, or a known option has the wrong length (RFC 8926 3.5: MUST drop).
        GeneveOption = "geneve_option",
        /// An unknown option is marked critical (RFC 8926 3.5.1: MUST drop).
        GeneveCritical = "geneve_critical",
        /// A control packet: its payload must not be forwarded (RFC 8926 3.4).
        GeneveControl = "geneve_control",
        /// A payload that is neither IP nor Ethernet.
        GeneveProto = "geneve_proto",
        /// No payload after the header.
        GeneveEmpty = "geneve_empty",
        /// The IP header of the VXLAN tunnel is cut short.
        TunnelIpShort = "tunnel_ip_short",
        /// Its version does not match GENEVE's protocol type.
        TunnelIpVersion = "tunnel_ip_version",
        /// Its header length is impossible.
        TunnelIpHeader = "tunnel_ip_hdr",
        /// Its total length is less than its header.
        TunnelIpLength = "tunnel_ip_len",
        /// The VXLAN tunnel packet is a fragment (RFC 7348 4.3: VTEPs MUST NOT fragment).
        TunnelFragment = "tunnel_frag",
        /// The UDP header of the VXLAN tunnel is cut short or its length is less than 8.
        TunnelUdpLength = "tunnel_udp_len",
        /// Fewer than 8 bytes of VXLAN.
        VxlanShort = "vxlan_short",
        /// The I flag is clear, so the VNI is not valid (RFC 7348 5).
        VxlanNoI = "vxlan_no_i",
        /// Nothing follows the VXLAN header.
        VxlanEmpty = "vxlan_empty",
        /// The outer or the mirror source address is not on the allow-list.
        SourceDenied = "source_denied",
        /// The user's filter did not match the mirrored frame.
        Filtered = "filtered",
        /// The schedule is off at the frame's time.
        OutOfSchedule = "out_of_schedule",
        /// The spool holds `spool.max_bytes` of unverified data.
        SpoolFull = "spool_full",
    }
}

impl Drop {
    /// Whether the frame itself was wrong, so that it is worth keeping in quarantine; false for drops by policy.
    #[must_use]
    pub const fn is_malformed(self) -> bool {
        (self as u8) < (Self::SourceDenied as u8)
    }
}

reasons! {
    /// Why a frame was none of ours.
    Ignored {
        /// Neither IPv4 nor IPv6.
        NotIp = "not_ip",
        /// IP, but not UDP (a TCP health check, for instance).
        NotUdp = "not_udp",
        /// UDP to a port that is not a tunnel's.
        OtherPort = "other_port",
        /// A packet that the load balancer carries inline, and `record.inline` is `ignore`.
        Inline = "inline",
    }
}
