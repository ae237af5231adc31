//! Enums whose values are the indexes of counters in a map, and have names.

macro_rules! counted {
    (
        $(#[$about:meta])* $name:ident, $(#[$count_doc:meta])* $count:ident:
        $($(#[$doc:meta])* $variant:ident = $text:literal,)+
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum $name { $($(#[$doc])* $variant,)+ }

        impl $name {
            /// Every one, in the order of the counters.
            pub const ALL: [Self; $count] = [$(Self::$variant,)+];

            /// A name for counters: lower case, words joined by `_`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        $(#[$count_doc])*
        pub const $count: usize = [$($text,)+].len();
    };
}

pub(crate) use counted;
