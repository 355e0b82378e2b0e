//! The parameters that advertising, analytics and mailing tools append to links (`cache.key.ignore_tracking`).
//!
//! Reviewed by hand. A name is here if a tool is known to append it for its own use and no origin is likely to answer
//! differently by it; general words (`ref`, `source`, `cid`, `id`) are not, however often they are used for this. A prefix is
//! here only where its owner documents all of it. Names are compared in their letter case, as origins do.
//!
//! Whoever changes the list changes [`VERSION`] with it: a test holds the two together.

/// Names this list: year, month, and a number within the month.
pub const VERSION: &str = "2026.11.1";

/// Names that begin so.
const PREFIXES: [&str; 4] = [
    "hsa_", // HubSpot advertising
    "matomo_", "mtm_", // Matomo
    "utm_", // Google Analytics, and by now everybody
];

/// Whole names, in the order of their bytes.
const NAMES: [&str; 67] = [
    "ScCid",              // Snapchat
    "__hsfp",             // HubSpot
    "__hssc",             // HubSpot
    "__hstc",             // HubSpot
    "__s",                // Drip
    "_branch_match_id",   // Branch
    "_branch_referrer",   // Branch
    "_bta_c",             // Bronto
    "_bta_tid",           // Bronto
    "_ga",                // Google Analytics across domains
    "_gl",                // Google Analytics across domains
    "_hsenc",             // HubSpot
    "_hsmi",              // HubSpot
    "_kx",                // Klaviyo
    "_openstat",          // Openstat
    "cjevent",            // Commission Junction
    "dclid",              // Google Display
    "dm_i",               // Dotdigital
    "ef_id",              // Adobe Advertising
    "epik",               // Pinterest
    "fb_action_ids",      // Facebook
    "fb_action_types",    // Facebook
    "fb_source",          // Facebook
    "fbclid",             // Facebook
    "gad_campaignid",     // Google Ads
    "gad_source",         // Google Ads
    "gbraid",             // Google Ads
    "gclid",              // Google Ads
    "gclsrc",             // Google Ads
    "gdffi",              // Godatafeed
    "gdfms",              // Godatafeed
    "gdftrk",             // Godatafeed
    "hsCtaTracking",      // HubSpot
    "igsh",               // Instagram
    "igshid",             // Instagram
    "irclickid",          // Impact
    "irgwc",              // Impact
    "li_fat_id",          // LinkedIn
    "mc_cid",             // Mailchimp
    "mc_eid",             // Mailchimp
    "mkt_tok",            // Marketo
    "mkwid",              // Marin
    "ml_subscriber",      // MailerLite
    "ml_subscriber_hash", // MailerLite
    "msclkid",            // Microsoft Advertising
    "oly_anon_id",        // Omeda
    "oly_enc_id",         // Omeda
    "omnisendContactID",  // Omnisend
    "piwik_campaign",     // Matomo, as Piwik
    "piwik_kwd",          // Matomo, as Piwik
    "pk_campaign",        // Matomo, as Piwik
    "pk_kwd",             // Matomo, as Piwik
    "rb_clickid",         // Omeda
    "rdt_cid",            // Reddit
    "s_kwcid",            // Adobe Advertising
    "srsltid",            // Google Merchant Center
    "tduid",              // Tradedoubler
    "trk_contact",        // Listrak
    "trk_module",         // Listrak
    "trk_msg",            // Listrak
    "trk_sid",            // Listrak
    "ttclid",             // TikTok
    "twclid",             // X
    "vero_conv",          // Vero
    "vero_id",            // Vero
    "wbraid",             // Google Ads
    "wickedid",           // Wicked Reports
];

/// Whether this decoded name is on the list.
pub fn is_listed(name: &[u8]) -> bool {
    PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
        || NAMES.binary_search_by(|listed| listed.as_bytes().cmp(name)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::super::key::hash128;
    use super::*;

    #[test]
    fn the_list_is_sorted_and_has_each_name_once() {
        assert!(NAMES.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(!NAMES.iter().any(|name| PREFIXES.iter().any(|prefix| name.starts_with(prefix))));
    }

    #[test]
    fn a_change_of_the_list_is_a_new_version() {
        let list = [&PREFIXES[..], &NAMES[..]].concat().join("\n");
        assert_eq!((VERSION, format!("{:016x}", hash128(list.as_bytes()) as u64).as_str()), ("2026.11.1", "5976dd5ed581c2f8"));
    }

    #[test]
    fn whole_names_and_prefixes_are_found() {
        for name in ["utm_source", "utm_", "gclid", "fbclid", "msclkid", "ScCid", "mtm_kwd", "wickedid", "__hsfp"] {
            assert!(is_listed(name.as_bytes()), "{name}");
        }
        for name in ["", "utm", "gclid2", "GCLID", "id", "ref", "source", "pk_id", "q", "sccid", "mtm"] {
            assert!(!is_listed(name.as_bytes()), "{name}");
        }
    }
}
